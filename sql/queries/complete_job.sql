-- complete_job: raises unless this attempt is the running one, and this owner's; no row where this is another installation's database.
select dispatcher.complete(%(id)s, %(attempt)s, %(result)s::jsonb, %(result_url)s::text) is not null as done
from dispatcher.installation i where i.id = %(installation)s and dispatcher.is_owned(%(id)s, %(attempt)s, %(owner)s)
