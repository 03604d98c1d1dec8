-- get_registration: when a replica registered. A server that was promoted may have lost that, and given its id to another one.
select r.started_at from dispatcher.replica r where r.id = %(replica)s
