-- list_vanished: of these ids, those of jobs that were there and have been removed. One that was never given out may be another
-- database's, from which this one was copied.
select a.id from unnest(%(ids)s::bigint[]) as a (id)
where a.id <= pg_sequence_last_value('dispatcher.job_id_seq'::regclass)
  and not exists (select from dispatcher.job j where j.id = a.id)
