"""The table's side of bulk_import: what may be loaded into, and how a batch is loaded around its bad rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
from psycopg import Connection, Cursor, sql

from .import_file import Record

# SQLSTATE classes that blame the data: data exception, constraint, row too big for an index, from a trigger.
ROW_ERRORS = ("22", "23", "54", "P0")


class TableProblem(Exception):
    """Nothing can be loaded into the table; one line for a person."""


class Reject(Protocol):
    """Takes a row that PostgreSQL refused."""

    def __call__(self, line: int, data: bytes, message: str, column: str | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Table:
    """A table that may be loaded into, and the columns that COPY can fill."""

    schema: str
    name: str
    types: dict[str, str] = field(default_factory=dict)
    """Of each column, in order; of a domain the type below it."""
    not_null: frozenset[str] = frozenset()
    partitioned: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        return list(self.types)

    @property
    def json_columns(self) -> set[str]:
        """Those in which a text is a JSON string."""
        return {name for name, type in self.types.items() if type in ("json", "jsonb")}

    @property
    def identifier(self) -> sql.Identifier:
        """Its name in a statement."""
        return sql.Identifier(self.schema, self.name)


def find_table(conn: Connection[Any], name: str) -> Table:
    """The table `name` or `schema.name`, both taken literally; raises TableProblem."""
    parts = name.split(".", 1)
    quoted = sql.Identifier(*parts).as_string(conn) if all(parts) else None
    row = conn.execute(
        """
        select n.nspname, c.relname, c.relkind in ('r', 'p'),
               n.nspname in ('dispatcher', 'information_schema') or n.nspname like 'pg\\_%%',
               c.relkind = 'p',
               (select json_agg(json_build_array(
                            a.attname, case when t.typbasetype = 0 then t.oid else t.typbasetype end::regtype::text,
                            a.attnotnull) order by a.attnum)
                from pg_attribute a join pg_type t on t.oid = a.atttypid
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.oid = to_regclass(%s)
        """,
        [quoted],
    ).fetchone()
    conn.commit()
    if row is None:
        raise TableProblem(f"there is no table {name!r}")
    schema, table, plain, reserved, partitioned, columns = row
    if reserved:
        raise TableProblem(f"schema {schema!r} is not for imports")
    if not plain:
        raise TableProblem(f"{name!r} is no table")
    columns = columns or []
    return Table(
        schema,
        table,
        types={column: type for column, type, _ in columns},
        not_null=frozenset(column for column, _, not_null in columns if not_null),
        partitioned=partitioned,
    )


class Loader:
    """Loads records in one transaction; finds the bad ones by the line that PostgreSQL names, or by halving.

    Each row is sent a bounded number of times, however many are bad: after an error the parts get smaller, as
    small as the distance between bad rows, and they double as long as all goes well.
    """

    def __init__(self, conn: Connection[Any], table: Table, columns: list[str], delimiter: str, null: str) -> None:
        self._conn = conn
        self._window: int | None = None
        self.inserted = 0
        """Of the rows loaded, those that were not there before; counted where a key is given."""
        self._copy_statement = sql.SQL(
            "copy {} ({}) from stdin (format csv, header, delimiter {}, null {}, encoding 'UTF8')"
        ).format(
            table.identifier,
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.Literal(delimiter),
            sql.Literal(null),
        )
        # Where PostgreSQL speaks another language, this finds nothing, and bad rows are found by halving.
        self._line_named = re.compile(rf"^COPY {re.escape(table.name)}, line (\d+)(?:, column (.*?): )?", re.MULTILINE)

    def begin(self) -> None:
        """Opens the transaction. A deferred constraint would only speak at the commit, and name no row."""
        self._conn.execute("set constraints all immediate")

    def load(self, records: Sequence[Record], *, window: int, reject: Reject) -> int:
        """Loads all good rows, in parts of at most `window`; the number loaded."""
        loaded = at = 0
        size = min(self._window or window, window)
        while at < len(records):
            part = records[at : at + size]
            try:
                loaded += self._copy(part)
            except psycopg.Error as exc:
                bad, column = self._locate(exc, part)
                if bad is None and len(part) > 1:
                    size = len(part) // 2
                    continue
                bad = bad or 0
                loaded += self.load(part[:bad], window=bad, reject=reject) if bad else 0
                reject(*part[bad], (exc.diag.message_primary or str(exc)), column)
                at += bad + 1
                size = max(8, 2 * (bad + 1))
            else:
                at += len(part)
                size = min(2 * size, window)
        self._window = size
        return loaded

    def _copy(self, part: Sequence[Record]) -> int:
        with self._conn.transaction(), self._conn.cursor() as cursor:
            return self._send(cursor, part)

    def _send(self, cursor: Cursor[Any], part: Sequence[Record]) -> int:
        with cursor.copy(self._copy_statement) as copy:
            # The header line fixes what ends a line before a first row with a line break inside can.
            copy.write(b"-\n" + b"".join([data for _, data in part]))
        return cursor.rowcount

    def _locate(self, exc: psycopg.Error, part: Sequence[Record]) -> tuple[int | None, str | None]:
        """Which row was refused; None where PostgreSQL does not say. Raises what is no row's fault."""
        if (exc.sqlstate or "")[:2] not in ROW_ERRORS:
            if isinstance(exc, psycopg.ProgrammingError):  # no privilege, no such column
                raise TableProblem(exc.diag.message_primary or str(exc)) from exc
            raise exc
        named = self._line_named.search(exc.diag.context or "")
        if named is None:
            return None, None
        line = 1
        for index, (_, data) in enumerate(part):
            line += data.count(b"\n")
            if line >= int(named[1]):
                return index, named[2]
        return None, None
