-- ensure_lease: the number of the named lease, made where it is new.
with made as (
    insert into dispatcher.lease (name) values (%(name)s) on conflict (name) do nothing returning number
)
select number from made union all select number from dispatcher.lease where name = %(name)s limit 1
