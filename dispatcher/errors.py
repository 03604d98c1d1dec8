"""Every error this package raises on purpose; each message is one line for a person."""

from __future__ import annotations

GRANT_HINT = (
    "its owner grants rights with select dispatcher.grant_access('ROLE', 'LEVEL'), a level being "
    "enqueue, read, operate or run"
)


class DispatcherError(Exception):
    """The base of all errors of this package."""


class SettingsError(DispatcherError):
    """A setting is wrong, or two of them contradict each other."""


class DatabaseUnavailable(DispatcherError):
    """PostgreSQL could not be reached, or ended the session."""


class ApiUnavailable(DatabaseUnavailable):
    """The HTTP API could not be reached, or what answers is not it."""


class AccessDenied(DispatcherError):
    """The HTTP API does not take the token, or it may not do this."""


class TooManyJobs(DispatcherError):
    """The HTTP API takes no more jobs of this tenant for now: too many wait already."""


class UnsupportedServer(DispatcherError):
    """The server cannot be led on: too old, in recovery, or behind a pooler."""


class InRecovery(UnsupportedServer, DatabaseUnavailable):
    """The server is a standby; it may be promoted, or another one be found."""


class SchemaError(DispatcherError):
    """The database's schema is missing, behind or ahead of this version."""


class ExecutorError(DispatcherError):
    """An executor cannot be registered: two for one type, a module that does not import."""


class EnqueueError(DispatcherError):
    """A job was refused; nothing was enqueued."""


class UnknownType(EnqueueError):
    """No replica has registered this type."""


class InvalidPayload(EnqueueError):
    """The payload is no JSON object, or does not fit the type's model."""


class PayloadTooLarge(EnqueueError):
    """The payload has more bytes than the type allows."""


class InvalidOption(EnqueueError):
    """An option is unknown, out of range or malformed."""


class UniqueConflict(DispatcherError):
    """Another unfinished job has the unique key."""


class JobNotFound(DispatcherError):
    """There is no job with this id."""


class ScheduleNotFound(DispatcherError):
    """There is no schedule of this name."""


class TokenNotFound(DispatcherError):
    """There is no token with this id."""


class InvalidSchedule(EnqueueError):
    """A cron expression or a time zone does not exist, or is never due."""


class WrongState(DispatcherError):
    """The job's state does not allow this."""


class JobFailed(DispatcherError):
    """The job one waited for did not succeed."""


class AttemptLost(DispatcherError):
    """This attempt is no longer the running one; its transaction must not commit."""


class UnsafeTransaction(DispatcherError):
    """ctx.complete or ctx.checkpoint was given a connection that cannot keep its promise."""


class StoreError(DispatcherError):
    """The store for results is not set, cannot be read, or refuses a name."""


class ResultTooLarge(DispatcherError):
    """The result has more bytes than a row may hold, and there is no store."""


# What the SQL functions raise (sql/migrations), and what a client sees.
BY_SQLSTATE: dict[str, type[DispatcherError]] = {
    "DJ001": UnknownType,
    "DJ002": InvalidPayload,
    "DJ003": PayloadTooLarge,
    "DJ004": InvalidOption,
    "DJ005": JobNotFound,
    "DJ006": WrongState,
    "DJ007": UniqueConflict,
    "DJ008": AttemptLost,
    "DJ009": UnsafeTransaction,
    "DJ010": ScheduleNotFound,
    "DJ011": InvalidSchedule,
}
