-- list_recent_migrations: what has been applied, and need not be known.
select version from dispatcher.recent_migration order by version
