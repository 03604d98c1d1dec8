-- lock_migrations: one migration at a time; the others wait and then find nothing to do.
select pg_advisory_xact_lock(1146310661, 0)
