-- set_leaving: whether this replica does not contend, so that an older one need not stand back for it. Not while somebody holds its row.
with own as materialized (
    select r.id from dispatcher.replica r where r.id = %(replica)s for no key update skip locked
)
update dispatcher.replica r set leaving = %(leaving)s from own o where r.id = o.id returning r.id
