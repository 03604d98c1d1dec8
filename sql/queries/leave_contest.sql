-- leave_contest: this replica will not lead again, so an older one need not stand back for it. Not while somebody holds its row.
with own as materialized (
    select r.id from dispatcher.replica r where r.id = %(replica)s for no key update skip locked
)
update dispatcher.replica r set leaving = true from own o where r.id = o.id returning r.id
