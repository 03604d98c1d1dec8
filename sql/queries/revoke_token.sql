-- revoke_token: false where it was revoked before, null where there is none.
select dispatcher.revoke_token(%(id)s)
