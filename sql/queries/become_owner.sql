-- become_owner: what a migration makes belongs to the owner of the schema, also where a superuser or a member of that role runs it. Until
-- the end of the transaction.
select set_config('role', pg_get_userbyid(n.nspowner), true)
from pg_namespace n
where n.nspname = 'dispatcher' and pg_get_userbyid(n.nspowner) <> current_user
