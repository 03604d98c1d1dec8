-- cancel_job: the state it leaves the job in.
select dispatcher.cancel(%(id)s)
