"""What a request works with: the parts of the server, who asks, and the ways to write."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from dispatcher.api.database import Database
from dispatcher.api.hub import Hub
from dispatcher.api.jobs import Jobs
from dispatcher.api.pending import PendingLimit
from dispatcher.api.problems import ApiError
from dispatcher.api.tokens import BadToken, Principal, Role, Tokens
from dispatcher.connecting import UNDONE
from dispatcher.errors import DatabaseUnavailable, DispatcherError
from dispatcher.operations import Operations
from dispatcher.queries.operation import Operation
from dispatcher.queries.serving import Answer, keep_answer, note_audit, take_key

T = TypeVar("T")


class Runner(Protocol):
    """Runs operations: the pool, each for itself, or one transaction."""

    async def run(self, operation: Operation[T]) -> T:
        """Runs one."""


REFUSALS = (ApiError, DispatcherError)
UNDONE_TRIES = 3  # of a transaction that another one has locked out, each of which takes a second
UNDONE_PAUSE_S = 0.5
UNDER_WAY = "the first request with this Idempotency-Key is under way"
ANOTHER = "this Idempotency-Key came with another request before"
Act = Callable[[Runner], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Api:
    """The parts of one server."""

    db: Database
    jobs: Jobs
    tokens: Tokens
    hub: Hub
    pending: PendingLimit
    operations: Operations


async def the_api(request: Request) -> Api:
    """The same, as a dependency: what is not async would be sent to a thread."""
    return api_of(request)


def api_of(request: Request) -> Api:
    """The server that a request came to."""
    api: Api = request.app.state.api
    return api


_bearer = HTTPBearer(auto_error=False, description="A token that `dispatcher token create` has shown.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
TheApi = Annotated[Api, Depends(the_api)]


async def _principal(request: Request, given: Credentials) -> Principal:
    if given is None:
        raise ApiError(
            401, "a bearer token is needed: dispatcher token create makes one", {"WWW-Authenticate": "Bearer"}
        )
    try:
        return await api_of(request).tokens.principal(given.credentials)
    except BadToken as exc:
        raise ApiError(401, str(exc), {"WWW-Authenticate": 'Bearer error="invalid_token"'}) from None


async def bearer_of(given: Credentials) -> str:
    """The bearer token itself, for a route whose tokens are a job's."""
    if given is None:
        raise ApiError(401, "the job's own callback token is needed", {"WWW-Authenticate": "Bearer"})
    return given.credentials


async def authenticate(request: Request) -> Principal:
    """Whom a request comes from; raises ApiError, 401, where its token does not count, or no more."""
    return await _principal(request, await _bearer(request))


TheCaller = Annotated[Principal, Depends(_principal)]


async def _writer(caller: TheCaller) -> Principal:
    return _with_role(caller, Role.WRITE)


async def _admin(caller: TheCaller) -> Principal:
    return _with_role(caller, Role.ADMIN)


async def _operator(caller: TheCaller) -> Principal:
    return _of_all_tenants(_with_role(caller, Role.ADMIN))


async def _overseer(caller: TheCaller) -> Principal:
    return _of_all_tenants(caller)


CallbackToken = Annotated[str, Depends(bearer_of)]
"""Whatever it is worth: the database knows."""
Writer = Annotated[Principal, Depends(_writer)]
"""May enqueue, cancel and retry."""
Admin = Annotated[Principal, Depends(_admin)]
"""May do that, and administer what is its tenant's own."""
Operator = Annotated[Principal, Depends(_operator)]
"""May administer what concerns all tenants."""
Overseer = Annotated[Principal, Depends(_overseer)]
"""May see what concerns all tenants."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[!-~]+$",
        description="Any text, new for each request that is meant. The same request with the same key, within a day, "
        "does nothing and gets the first answer again.",
    ),
]


def _with_role(caller: Principal, role: Role) -> Principal:
    if caller.role < role:
        raise ApiError(403, f"this needs the role {role.name.lower()}; the token has {caller.role.name.lower()}")
    return caller


def _of_all_tenants(caller: Principal) -> Principal:
    if caller.tenant is not None:
        raise ApiError(403, "this concerns all tenants, and the token is of one")
    return caller


async def write(
    request: Request,
    caller: Principal,
    act: Act,
    *,
    key: str | None = None,
    atomic: bool = False,
    audit: Audit | None = None,
) -> Response:
    """Does something and answers. With a key: once, and what was answered first is answered again; `atomic`: all of it
    or nothing; `audit`: and it is on record."""
    if key is None and not atomic and audit is None:
        return respond(await act(api_of(request).db))
    for tries_left in reversed(range(UNDONE_TRIES)):
        try:
            return await _write_once(request, caller, act, key, audit)
        except DatabaseUnavailable as exc:
            if not tries_left or not isinstance(exc.__cause__, UNDONE):
                raise
            await asyncio.sleep(random.random() * UNDONE_PAUSE_S)  # noqa: S311 - no secret; or both would meet again
    raise AssertionError  # the last try returns or raises


async def _write_once(request: Request, caller: Principal, act: Act, key: str | None, audit: Audit | None) -> Response:
    async with api_of(request).db.transaction() as transaction:
        if key is None:
            answer = await act(transaction)
        else:
            first = await _take(transaction, request, caller, key)
            if first is not None:
                return respond_once(True, first)
            answer = await act(transaction)
            await transaction.run(keep_answer(caller.tenant or "", key, answer))
        if audit is not None:
            await transaction.run(
                note_audit(
                    token_id=caller.token_id,
                    token_name=caller.name,
                    tenant=caller.tenant,
                    action=audit.action,
                    target=audit.target,
                    details=audit.details,
                    address=request.client.host if request.client else None,
                )
            )
    return respond(answer)


async def first_answer(request: Request, caller: Principal, key: str | None, refusal: Exception) -> Response:
    """For a request that would be refused now: what it was answered first. Raises the refusal where it is new."""
    if key is None or isinstance(refusal, DatabaseUnavailable):
        raise refusal
    async with api_of(request).db.transaction() as transaction:
        first = await _take(transaction, request, caller, key)
        if first is None:
            raise refusal  # the key stays as new as it was
    return respond_once(True, first)


async def _take(transaction: Runner, request: Request, caller: Principal, key: str) -> Answer | None:
    """Takes the key, or shows the first answer; raises ApiError, 409."""
    busy, same, first = await transaction.run(take_key(caller.tenant or "", key, await digest(request)))
    if busy:
        raise ApiError(409, UNDER_WAY, {"Retry-After": "1"})
    if not same:
        raise ApiError(409, ANOTHER)
    return first


@dataclass(frozen=True, slots=True)
class Audit:
    """What an administrator does."""

    action: str
    target: str
    details: dict[str, Any]


def answer(status: int, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """An answer with a JSON body, or with none."""
    text = "" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return Answer(status, headers or {}, text)


def respond(given: Answer, more: dict[str, str] | None = None) -> Response:
    """As a response."""
    return Response(
        given.body, given.status, {**given.headers, **(more or {})}, "application/json" if given.body else None
    )


def respond_once(replayed: bool, given: Answer) -> Response:
    """The answer to a request that may have come before."""
    if given.status == 0:
        raise ApiError(409, UNDER_WAY, {"Retry-After": "1"})
    if given.status == 409:
        raise ApiError(409, ANOTHER)
    return respond(given, {"Idempotency-Replayed": "true"} if replayed else None)


async def digest(request: Request) -> bytes:
    """Stands for the whole request."""
    kind = request.headers.get("content-type", "")
    head = f"{request.method} {request.url.path}?{request.url.query} {kind}\n"
    return hashlib.sha256(head.encode() + await request.body()).digest()


def _plain(value: Any) -> Any:
    return value.isoformat().replace("+00:00", "Z")
