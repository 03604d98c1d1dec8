-- count_stopped_schedules: those that an error keeps from going on.
select count(*)::integer from dispatcher.schedule where error is not null
