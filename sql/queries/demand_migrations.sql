-- demand_migrations: whoever does not know these versions may not run here any more.
with old as (
    delete from dispatcher.recent_migration r where r.version <= %(version)s returning r.version, r.name, r.applied_at
)
insert into dispatcher.migration (version, name, applied_at) select o.version, o.name, o.applied_at from old o
