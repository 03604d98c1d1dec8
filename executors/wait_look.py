"""One look at what wait_until waits for: a request, a call of JSON-RPC or a query, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import psycopg
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from dispatcher import Context, DatabaseUnavailable, Fail, Job

from .export_formats import subquery, unambiguous
from .http_answer import Redactor, error_line, parsed, pause_of, shown
from .http_question import Body, Headers, Question, Url
from .outside import REDIRECTS, SPARE_S, Answer, Unreachable, ask
from .outside_rules import allow
from .queries import TookTooLong, find_query, reading

MOST_BYTES = 1_000_000  # of an answer: it is held in memory
HOPELESS = (-32700, -32600, -32601, -32602)  # of JSON-RPC: the request itself is wrong

_ROW = """
    select case when octet_length(r.json) <= {most} then r.json end, r.rows
    from (select row_to_json(query.*)::text as json, count(*) over () as rows from {query} as query limit 1) r"""


class Call(BaseModel):
    """A call of JSON-RPC 2.0 over HTTP."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    """Of a host in DISPATCHER_HTTP_HOSTS."""
    method: str = Field(min_length=1, max_length=200)
    params: list[JsonValue] | dict[str, JsonValue] | None = None
    headers: Headers = {}
    """As those of an http_request."""

    def question(self, id: int) -> Question:
        """The request that makes it."""
        call: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": self.method}
        if self.params is not None:
            call["params"] = self.params
        return Question(url=self.url, method="POST", headers=self.headers, body=Body.model_validate({"json": call}))


class Named(BaseModel):
    """A query of the administrator's file."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    params: dict[str, JsonValue] = {}


@dataclass(frozen=True, slots=True)
class Look:
    """What a look has found."""

    answer: dict[str, Any] | None
    """What conditions are about; None where there is none."""
    problem: str | None = None
    """Why the answer is none that one waits for, in a line."""
    about: str | None = None
    """Where the answer tells of the problem: a condition is judged in spite of it if it looks there."""
    pause_s: float | None = None
    """How long the server asks to be left alone."""
    hopeless: bool = False
    """No other look can help."""


def look_http(job: Job, ctx: Context, question: Question, timeout_s: float) -> Look:
    """`{"status": …, "body": …}`; any status but 200 to 299 is a problem."""
    try:
        return _asked(job, ctx, question, timeout_s)[0]
    except Unreachable as exc:
        return Look(None, str(exc))


def look_json_rpc(job: Job, ctx: Context, call: Call, timeout_s: float) -> Look:
    """`{"result": …}` or `{"error": …}`; an error is a problem."""
    id = job.attempt  # another one each time, so that an answer which a cache kept is found out
    try:
        look, text = _asked(job, ctx, call.question(id), timeout_s)
    except Unreachable as exc:
        return Look(None, str(exc))
    said = parsed(text)
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(said, dict) or (error is None and "result" not in said):
        problem = look.problem or f"{_host(call)} answered with what is not JSON-RPC: {_line(text)}"
        return Look(None, problem, pause_s=look.pause_s)
    # A server that could not read the request cannot say whose answer it is.
    if said.get("id") != id and not (error is not None and said.get("id") is None):
        return Look(None, f"{_host(call)} answered another call than this one: the id is {said.get('id')!r:.50}")
    if error is None:
        return Look({"result": said["result"]}, look.problem, pause_s=look.pause_s)  # with a bad status none counts
    code, text = (error.get("code"), str(error.get("message"))) if isinstance(error, dict) else (None, str(error))
    problem = f"{_line(call.method)} at {_host(call)} was answered with error {code}: {_line(text)}"
    return Look({"error": error}, problem, "/error", look.pause_s, hopeless=code in HOPELESS)


def look_query(ctx: Context, named: Named, timeout_s: float) -> Look:
    """`{"rows": …, "row": {…}}`, the first one; an error that may pass is a problem."""
    bound = find_query(named.name, named.params)
    if ctx.deadline is not None:
        timeout_s = max(0.001, min(timeout_s, ctx.deadline - SPARE_S - time.monotonic()))
    try:
        with reading(ctx, bound, timeout_s=timeout_s) as query:
            unambiguous(query.columns)
            statement = sql.SQL(_ROW).format(query=subquery(query), most=sql.Literal(MOST_BYTES))
            row = query.conn.execute(statement).fetchone()
    except (TookTooLong, DatabaseUnavailable, psycopg.Error) as exc:
        return Look(None, _line(str(exc)))
    if row is None:
        return Look({"rows": 0, "row": None})
    if row[0] is None:
        raise Fail(f"query {named.name!r}: its first row has more than {MOST_BYTES} bytes")
    return Look({"rows": row[1], "row": parsed(row[0])})


def _asked(job: Job, ctx: Context, question: Question, timeout_s: float) -> tuple[Look, str]:
    redactor = Redactor()
    headers, sent = question.prepare(job, allow(question.url), redactor)
    redirects = REDIRECTS if question.follow_redirects else 0
    with ask(
        ctx, question.method, question.url, headers=headers, body=sent, timeout_s=timeout_s, redirects=redirects
    ) as answer:
        good = 200 <= answer.status < 300
        body = answer.start(MOST_BYTES + 1)
        if good and len(body) > MOST_BYTES:
            raise Fail(f"{question.method} {_host(question)} was answered with more than {MOST_BYTES} bytes")
        problem = None if good else error_line(answer, question.method, redactor, body)
        text = redactor.clean(body.decode(errors="replace"))
        document = {"status": answer.status, **_body(answer, body, text, redactor)}
        return Look(document, problem, "/status", None if good else pause_of(answer)), text


def _body(answer: Answer, body: bytes, text: str, redactor: Redactor) -> dict[str, Any]:
    """As http_request shows it; JSON also where the server calls it a plain text, as some do."""
    found = shown(body, answer.headers.get("content-type", ""), redactor)
    if isinstance(found.get("body"), str) and text.lstrip()[:1] in ("{", "["):
        return {"body": parsed(text)}
    return found


def _host(asked: Question | Call) -> str:
    return asked.url.partition("?")[0]


def _line(text: str) -> str:
    return " ".join(text.replace("\0", "\ufffd").split())[:300]
