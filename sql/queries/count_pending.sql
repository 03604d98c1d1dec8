-- count_pending: pending jobs of a tenant, counted up to (most).
select count(*)
from (select 1 as one
      from dispatcher.type t cross join lateral (
          select 1 as one from dispatcher.job j
          where j.listed = 'pending' and j.type = t.name and j.tenant = %(tenant)s limit %(most)s::bigint) p
      limit %(most)s::bigint) counted
