-- beat: a sign of life on the lease session, and whether this replica still has its row.
-- Of a replica that runs jobs it commits something where replication is synchronous: a former primary still answers questions when
-- another server has been promoted, but it waits for ever to commit, and who is connected to it must not go on.
select exists (select from dispatcher.replica where id = %(replica)s) as known,
       case when %(running)s and current_setting('synchronous_standby_names') <> ''
            then pg_logical_emit_message(true, 'dispatcher', '') end as committed
