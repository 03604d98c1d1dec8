-- register_replica: a new process is a new replica, whatever its host.
insert into dispatcher.replica (lease, host, pid, boot_id, pid_namespace, process_start, lock_file, version, types, remote_types,
    server_started, database_oid, schema_version)
values (%(lease)s, %(host)s, %(pid)s, %(boot_id)s, %(pid_namespace)s, %(process_start)s, %(lock_file)s, %(version)s, %(types)s,
        %(remote_types)s, pg_postmaster_start_time(), (select d.oid from pg_database d where d.datname = current_database()),
        %(schema_version)s)
returning id
