-- prune_answers: removes a page of the answers that nobody can ask for any more.
delete from dispatcher.answer a
where (a.tenant, a.key) in (
    select o.tenant, o.key from dispatcher.answer o where o.created_at < now() - interval '1 day'
    order by o.created_at limit %(page)s)
