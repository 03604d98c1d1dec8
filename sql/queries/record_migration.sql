-- record_migration: in the same transaction as the migration itself.
insert into dispatcher.recent_migration (version, name) values (%(version)s, %(name)s)
