-- wait_lease: one bounded wait; on "no", who holds it.
select held, holder_pid, holder_backend_start, holder_state, holder_state_change
from dispatcher.wait_lease(%(lease)s, %(wait_ms)s)
