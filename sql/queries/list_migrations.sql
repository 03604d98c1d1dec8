-- list_migrations: what has been applied.
select version from dispatcher.migration order by version
