-- Control at run time: what operators say about types goes before what the code and the settings say.

-- From the code or the settings, as each replica publishes them.
alter table dispatcher.type add column tenant_max_running integer;
alter table dispatcher.type add column rate double precision;   -- starts a second
alter table dispatcher.type add column burst integer;

-- What an operator said; null: as the code says.
create table dispatcher.control (
    type text collate "C" not null,
    tenant text collate "C" not null default '',       -- '': the type as a whole; else that tenant's limit alone
    max_running integer check (max_running >= 1),
    tenant_max_running integer check (tenant_max_running >= 1),   -- of each tenant that has no row of its own
    rate double precision check (rate > 0),
    burst integer check (burst >= 1),
    paused_at timestamptz,
    paused_by text,
    changed_at timestamptz not null default now(),
    changed_by text not null default session_user,
    primary key (type, tenant)
);

-- Until when a type's rate holds its jobs back, as the leader last saw it. A hint for people, nothing relies on it.
create table dispatcher.throttle (
    type text collate "C" primary key,
    held_until timestamptz not null
) with (fillfactor = 50);

-- What explains why a job waits: the leader's own bounds, and when it was last seen at work.
alter table dispatcher.lease add column max_running integer;    -- over all types; null: no limit
alter table dispatcher.lease add column threads integer;
alter table dispatcher.lease add column seen_at timestamptz;
