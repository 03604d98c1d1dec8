-- beat: a sign of life on the lease session, and whether this replica still has its row.
select exists (select from dispatcher.replica where id = %(replica)s)
