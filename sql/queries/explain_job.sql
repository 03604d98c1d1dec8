-- explain_job: why a job does not run; raises where there is no such job.
select dispatcher.explain(%(id)s)
