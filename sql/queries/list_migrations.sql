-- list_migrations: what has been applied, and must be known to whoever runs here.
select version from dispatcher.migration order by version
