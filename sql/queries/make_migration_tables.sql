-- make_migration_tables: needed before the first migration can be recorded. A replica refuses to start where `migration` has a version
-- that it does not know. So the migrations since the previous release, which that one's replicas can do without, stand apart.
create table if not exists dispatcher.migration (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);
create table if not exists dispatcher.recent_migration (like dispatcher.migration including all)
