-- next_due: seconds until the earliest scheduled job is due, and whether marks wait to be worked off.
select (select extract(epoch from j.run_at - clock_timestamp())::double precision
        from dispatcher.job j where j.listed = 'scheduled' order by j.run_at limit 1) as seconds,
       exists (select from dispatcher.follow_up) as marked
