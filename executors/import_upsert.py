"""Upserts for bulk_import: a batch goes into a temporary table by COPY, and from there over what is in the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from psycopg import Connection, errors, sql

from .import_file import Record
from .import_table import Loader, Table, TableProblem

Conflict = Literal["update", "skip"]
STAGE = "bulk_import_rows"


class Upserter(Loader):
    """A Loader that updates or skips what is there already by its key.

    The temporary table refuses nulls where the table does, and so PostgreSQL names the line of such a row, too.
    """

    def __init__(
        self,
        conn: Connection[Any],
        table: Table,
        columns: list[str],
        delimiter: str,
        null: str,
        *,
        key: list[str],
        on_conflict: Conflict,
    ) -> None:
        _check_key(conn, table, columns, key)
        order = "_row"
        while order in columns:
            order += "_"
        stage = Table(schema="pg_temp", name=STAGE)
        _make_stage(conn, stage, table, columns, set(key) | (set(columns) & table.not_null), order)
        super().__init__(conn, stage, columns, delimiter, null)
        self._clear = sql.SQL("delete from {}").format(stage.identifier)
        self._upsert = _upsert(stage, table, columns, key, on_conflict, order)
        self._count = _count_new(stage, table, key) if table.partitioned else None
        self._used = False

    def begin(self) -> None:
        """Opens the transaction, in which the temporary table is empty."""
        super().begin()
        self._used = False

    def _copy(self, part: Sequence[Record]) -> int:
        with self._conn.transaction(), self._conn.cursor() as cursor:
            if self._used:
                cursor.execute(self._clear)
            loaded = self._send(cursor, part)
            new = cursor.execute(self._count).fetchone() if self._count else None
            answer = new or cursor.execute(self._upsert).fetchone()
            if new:
                cursor.execute(self._upsert)
        assert answer is not None
        self.inserted += answer[0]
        self._used = True
        return loaded


def _check_key(conn: Connection[Any], table: Table, columns: list[str], key: list[str]) -> None:
    """Raises TableProblem unless the file has the key, and a unique index guards exactly its columns."""
    shown = ", ".join(key)
    if missing := [name for name in key if name not in columns]:
        raise TableProblem(f"the key ({shown}) needs {', '.join(map(repr, missing))} among the columns of the file")
    row = conn.execute(
        """
        select exists (
            select from pg_index i
            where i.indrelid = to_regclass(%s) and i.indisunique and i.indisvalid and i.indimmediate
              and i.indpred is null and i.indexprs is null and i.indnkeyatts = %s
              and (select array_agg(a.attname::text order by a.attname::text) from pg_attribute a
                   where a.attrelid = i.indrelid and a.attnum = any((i.indkey::smallint[])[0:i.indnkeyatts - 1]))
                  = (select array_agg(name order by name) from unnest(%s::text[]) name))
        """,
        [table.identifier.as_string(conn), len(key), key],
    ).fetchone()
    conn.commit()
    if row is None or not row[0]:
        raise TableProblem(
            f"table {table.name!r} has no unique index on exactly ({shown}): create one, not deferrable or partial"
        )


def _make_stage(
    conn: Connection[Any], stage: Table, table: Table, columns: list[str], not_null: set[str], order: str
) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    required = [sql.SQL("alter {} set not null").format(sql.Identifier(name)) for name in sorted(not_null)]
    row = sql.SQL("add {} bigint generated always as identity").format(sql.Identifier(order))
    try:
        conn.execute(
            sql.SQL("create temp table {} on commit delete rows as select {} from {} with no data").format(
                sql.Identifier(stage.name), names, table.identifier
            )
        )
        conn.execute(sql.SQL("alter table {} {}").format(stage.identifier, sql.SQL(", ").join([*required, row])))
    except errors.InsufficientPrivilege as exc:
        raise TableProblem(f"an upsert needs SELECT and a temporary table: {exc.diag.message_primary}") from exc
    conn.commit()


def _upsert(
    stage: Table, table: Table, columns: list[str], key: list[str], on_conflict: Conflict, order: str
) -> sql.Composed:
    """Of rows with the same key the last one counts for an update, and the first one where the others are skipped."""
    others = [sql.Identifier(name) for name in columns if name not in key]
    change: sql.Composable = sql.SQL("do nothing")
    if on_conflict == "update" and others:
        change = sql.SQL("do update set ") + sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(name) for name in others
        )
    # In the order of the key: of two jobs that touch the same rows one waits, and none is a deadlock's victim.
    insert = sql.SQL(
        "insert into {table} ({names}) overriding system value"
        " select {names} from (select distinct on ({key}) * from {stage} order by {key}, {order} {direction}) as rows"
        " on conflict ({key}) {change}"
    ).format(
        table=table.identifier,
        stage=stage.identifier,
        names=sql.SQL(", ").join(map(sql.Identifier, columns)),
        key=sql.SQL(", ").join(map(sql.Identifier, key)),
        order=sql.Identifier(order),
        direction=sql.SQL("desc" if on_conflict == "update" else "asc"),
        change=change,
    )
    if table.partitioned:  # has no xmax to return
        return insert
    # A row that was inserted has not been locked by this statement; one that was updated has.
    return sql.SQL("with done as ({} returning xmax = 0 as new) select count(*) filter (where new) from done").format(
        insert
    )


def _count_new(stage: Table, table: Table, key: list[str]) -> sql.Composed:
    """How many keys are not there yet; who inserts them a moment later is not seen."""
    names = [sql.Identifier(name) for name in key]
    return sql.SQL(
        "select count(*) from (select distinct {keys} from {stage}) as stage"
        " where not exists (select from {table} as target where {same})"
    ).format(
        keys=sql.SQL(", ").join(names),
        stage=stage.identifier,
        table=table.identifier,
        same=sql.SQL(" and ").join(sql.SQL("target.{0} = stage.{0}").format(name) for name in names),
    )
