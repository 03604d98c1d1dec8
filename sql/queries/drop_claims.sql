-- drop_claims: lists whose jobs have all been settled.
delete from dispatcher.claim where id = any(%(claims)s::bigint[])
