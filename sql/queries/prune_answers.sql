-- prune_answers: removes a page of the answers that nobody can ask for any more; an hour later than that, so that nobody is asking.
delete from dispatcher.answer a
where (a.tenant, a.key) in (
    select o.tenant, o.key from dispatcher.answer o where o.created_at < now() - interval '25 h'
    order by o.created_at limit %(page)s)
