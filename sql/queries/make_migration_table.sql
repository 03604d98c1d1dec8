-- make_migration_table: needed before the first migration can be recorded.
create schema if not exists dispatcher;
create table if not exists dispatcher.migration (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
)
