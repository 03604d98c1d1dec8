-- get_time: the database's.
select now()
