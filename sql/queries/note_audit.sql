-- note_audit: in the transaction that did it.
select dispatcher.note_audit(%(token_id)s, %(token_name)s, %(tenant)s, %(action)s, %(target)s, %(details)s::jsonb, %(address)s)
