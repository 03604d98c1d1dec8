-- apply_access: after migrations, what they brought is granted to whom its level was granted to, and to nobody else.
select dispatcher.apply_access()
