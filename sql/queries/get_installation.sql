-- get_installation: which installation this database is.
select id from dispatcher.installation
