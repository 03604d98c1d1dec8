-- prune_tallies: removes a page of the periods that no window reaches any more.
delete from dispatcher.tally t
using (
    (select o.grain, o.at, o.tenant, o.type from dispatcher.tally o
     where o.grain = 'minute' and o.at < now() - interval '2 hours' order by o.at, o.tenant, o.type limit %(page)s)
    union all
    (select o.grain, o.at, o.tenant, o.type from dispatcher.tally o
     where o.grain = 'hour' and o.at < now() - interval '26 hours' order by o.at, o.tenant, o.type limit %(page)s)
) old
where t.grain = old.grain and t.at = old.at and t.tenant = old.tenant and t.type = old.type
