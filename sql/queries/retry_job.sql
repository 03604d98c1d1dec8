-- retry_job: pending, or an error that says why not.
select dispatcher.retry(%(id)s)
