"""CSV and NDJSON for export_query: PostgreSQL writes both by COPY, which is exact and fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import Column, Copy, postgres, sql

from dispatcher import Fail

from .queries import Reading

BLOCK = 1 << 20
# Types whose JSON is on one line. Others may hold a value of type json, which keeps the line breaks that it came with.
PLAIN = (
    *("bool", "bpchar", "bytea", "date", "float4", "float8", "int2", "int4", "int8", "interval", "jsonb", "numeric"),
    *("text", "time", "timestamp", "timestamptz", "uuid", "varchar"),
)
ONE_LINE = frozenset(oid for name in PLAIN for oid in (postgres.types[name].oid, postgres.types[name].array_oid))
# A COPY in the format text would double the backslashes of JSON. These two signs are never in it, so nothing is quoted.
NOTHING_QUOTED = sql.SQL("(format csv, quote e'\\x01', delimiter e'\\x02', encoding 'UTF8')")


class Produced(NamedTuple):
    """A part of the file."""

    data: bytes
    rows: int
    """In the file up to here."""


@dataclass(frozen=True, slots=True)
class Format:
    """A COPY, and what makes a file of what it gives."""

    statement: sql.Composed
    blocks: Callable[[Copy], Iterator[Produced]]


def csv_format(query: Reading, *, header: bool, delimiter: str, null: str) -> Format:
    """As PostgreSQL writes it: null and an empty text stay apart."""
    options = sql.SQL("(format csv, header {}, delimiter {}, null {}, encoding 'UTF8')").format(header, delimiter, null)
    statement = sql.SQL("copy {} to stdout {}").format(subquery(query), options)
    return Format(statement, lambda copy: _blocks(copy, before=int(header)))


def ndjson_format(query: Reading) -> Format:
    """An object a row, as PostgreSQL writes it: numbers with all their digits, times in ISO 8601."""
    unambiguous(query.columns)
    line = sql.SQL("row_to_json(query.*)::text")
    if any(column.type_code not in ONE_LINE for column in query.columns):
        line = sql.SQL("translate(row_to_json(query.*)::text, e'\\n\\r', '  ')")
    statement = sql.SQL("copy (select {} from {} as query) to stdout {}").format(line, subquery(query), NOTHING_QUOTED)
    return Format(statement, lambda copy: _blocks(copy, before=0))


def subquery(query: Reading) -> sql.Composable:
    """The query in parentheses, on lines of its own: it may end in a comment."""
    return sql.SQL("(\n{}\n)").format(sql.SQL(query.statement.decode()))


def unambiguous(columns: list[Column]) -> None:
    """Raises Fail where two columns have one name."""
    name, count = Counter(column.name for column in columns).most_common(1)[0] if columns else ("", 0)
    if count != 1:
        reason = f"has {count} columns named {name!r}" if columns else "has no columns"
        raise Fail(f"the query {reason}: give each a name of its own with `as`; only an export to CSV takes them so")


def _blocks(copy: Copy, *, before: int) -> Iterator[Produced]:
    """Blocks of about a MiB. PostgreSQL sends a message a row, and one before them for the header."""
    parts, size, rows = [], 0, -before
    for row in copy:
        parts.append(row)
        size += len(row)
        rows += 1
        if size >= BLOCK:
            yield Produced(b"".join(parts), rows)
            parts, size = [], 0
    yield Produced(b"".join(parts), rows)
