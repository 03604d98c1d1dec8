-- own_batch: raises unless this attempt is the running one, and this owner's; no row where this is another installation's database.
select dispatcher.own_batch(%(batch)s, %(id)s, %(attempt)s) as free
from dispatcher.installation i where i.id = %(installation)s and dispatcher.is_owned(%(id)s, %(attempt)s, %(owner)s)
