"""Type `bulk_import`: loads a CSV, NDJSON or Parquet file into a table by COPY, each row once, bad rows reported.

Each batch of rows commits together with a checkpoint that says where the next one begins, so that a try after
a crash goes on there. A batch that PostgreSQL refuses is loaded in smaller parts, around the rows it names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from psycopg import Connection
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dispatcher import Context, Fail, Job, Partial, executor

from .connections import stopping
from .import_file import FileProblem, Record, Source, open_inside
from .import_rows import Layout, RowProblem, csv_layout, ndjson_layout
from .import_table import Loader, Table, TableProblem, find_table
from .import_upsert import Conflict, Upserter

if TYPE_CHECKING:
    from .import_parquet import ParquetSource

SETTING = "DISPATCHER_IMPORT_ROOT"


class BulkImportPayload(BaseModel):
    """What `bulk_import` accepts."""

    model_config = ConfigDict(extra="forbid")

    path: str
    """Of the file, relative to DISPATCHER_IMPORT_ROOT; .gz is unpacked, but for Parquet."""
    table: str
    """With or without its schema; names are taken as they are, upper and lower case too."""
    format: Literal["csv", "ndjson", "parquet"] | None = None
    """By default told from the name: .csv, .tsv, .ndjson, .jsonl, each also with .gz, and .parquet."""
    columns: list[str] | dict[str, str] | None = None
    """Which of the file's columns to load, as a mapping: into which of the table's; by default all, by name.
    For CSV without a header: the names of the file's columns, in order."""
    header: bool = True
    null: str = ""
    delimiter: str = ","
    batch_rows: int = Field(default=10_000, ge=1, le=1_000_000)
    max_errors: int = Field(default=100, ge=0, le=1000)
    """So many errors are kept; the rest is counted."""
    key: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns of the table that tell its rows apart; what is there already is updated or skipped."""
    on_conflict: Conflict | None = None
    """With a key: what becomes of a row that is there already; by default update."""

    @field_validator("delimiter")
    @classmethod
    def _one_byte(cls, delimiter: str) -> str:
        if len(delimiter.encode()) != 1 or delimiter in '"\r\n\0':
            raise ValueError("must be one character of ASCII, and no quote or line break")
        return delimiter

    @field_validator("null")
    @classmethod
    def _plain(cls, null: str) -> str:
        if any(char in null for char in '"\r\n\0'):
            raise ValueError("must not contain a quote or line break")
        return null

    @model_validator(mode="after")
    def _fits_together(self) -> BulkImportPayload:
        if self.columns is not None and not self.columns:
            raise ValueError("columns must not be empty")
        if self.delimiter in self.null:
            raise ValueError("null must not contain the delimiter")
        if self.on_conflict is not None and self.key is None:
            raise ValueError("on_conflict goes with a key")
        if self.key is not None and len(set(self.key)) < len(self.key):
            raise ValueError("key names a column twice")
        return self

    @property
    def kind(self) -> str | None:
        """The format given, or told from the file's name."""
        ending = self.path.removesuffix(".gz").rpartition(".")[2].lower()
        kinds = {"csv": "csv", "tsv": "csv", "ndjson": "ndjson", "jsonl": "ndjson", "parquet": "parquet"}
        return self.format or kinds.get(ending)


@executor(
    "bulk_import",
    limit=4,
    timeout=timedelta(hours=1),
    max_attempts=5,
    retry_timeouts=True,  # the next try goes on where this one stopped
    payload=BulkImportPayload,
)
def bulk_import(job: Job, ctx: Context) -> Any:
    """Loads a CSV, NDJSON or Parquet file into a table, each row exactly once."""
    payload: BulkImportPayload = job.payload
    try:
        # A COPY may wait for a lock on the table for long.
        with _open(payload) as source, stopping(ctx, ctx.connect()) as conn:
            return _Import(payload, source, conn, ctx).run(job.checkpoint)
    except (FileProblem, TableProblem) as exc:
        raise Fail(str(exc)) from exc


def _open(payload: BulkImportPayload) -> Source | ParquetSource:
    root = os.environ.get(SETTING)
    if not root:
        raise Fail(f"imports are off: set {SETTING} for the daemon to the folder that may be read")
    if payload.kind is None:
        raise Fail(f"the format of {payload.path!r} cannot be told from its name: say csv, ndjson or parquet")
    if payload.kind == "parquet":
        try:
            from .import_parquet import ParquetSource  # noqa: PLC0415 - pyarrow is an extra, and slow to import
        except ImportError:
            raise Fail("bulk_import of Parquet needs pyarrow: install pg-dispatcher[parquet]") from None
        return ParquetSource(open_inside(root, payload.path), name=payload.path)
    fd = open_inside(root, payload.path)
    return Source(fd, name=payload.path, quoted=payload.kind == "csv")


class _Import:
    """One try: from the checkpoint to the end of the file."""

    def __init__(
        self, payload: BulkImportPayload, source: Source | ParquetSource, conn: Connection[Any], ctx: Context
    ) -> None:
        self._payload = payload
        self._source = source
        self._conn = conn
        self._ctx = ctx
        self._rows = 0
        self._rejected = 0
        self._inserted = self._inserted_before = 0
        self._errors: list[dict[str, Any]] = []
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def run(self, checkpoint: Any) -> Any:
        """Loads what is left of the file; the job's result."""
        table = find_table(self._conn, self._payload.table)
        layout = self._layout(table)
        loader = self._loader(table, layout)
        if checkpoint is not None:
            self._resume(checkpoint)
        for batch in self._batches():
            loader.begin()
            good = list(self._prepared(layout, batch))
            self._rows += loader.load(good, window=self._payload.batch_rows, reject=self._reject)
            self._inserted = self._inserted_before + loader.inserted
            self._commit()
        return self._result()

    def _layout(self, table: Table) -> Layout:
        payload = self._payload
        if payload.kind == "parquet":
            layout = cast("ParquetSource", self._source).layout(table, payload.columns)
        elif payload.kind == "csv":
            layout = csv_layout(
                cast(Source, self._source),
                table.columns,
                columns=payload.columns,
                header=payload.header,
                delimiter=payload.delimiter.encode(),
                null=payload.null,
            )
        else:
            layout = ndjson_layout(
                cast(Source, self._source), table.columns, columns=payload.columns, json_columns=table.json_columns
            )
        unknown = [name for name in layout.columns if name not in table.columns]
        if unknown:
            raise TableProblem(f"table {payload.table!r} has no column {', '.join(map(repr, unknown))}")
        return layout

    def _loader(self, table: Table, layout: Layout) -> Loader:
        payload = self._payload
        delimiter = "," if payload.kind == "parquet" else payload.delimiter
        if payload.key is None:
            return Loader(self._conn, table, layout.columns, delimiter, layout.null)
        conflict = payload.on_conflict or "update"
        return Upserter(
            self._conn, table, layout.columns, delimiter, layout.null, key=payload.key, on_conflict=conflict
        )

    def _resume(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["source"] != self._source.identity:
            raise FileProblem(
                f"{self._payload.path!r} has changed since its first {checkpoint['line'] - 1} {self._source.unit}s "
                "were loaded: they stay; enqueue a new job for the new file"
            )
        self._source.seek(checkpoint["offset"], checkpoint["line"])
        self._rows, self._rejected = checkpoint["rows"], checkpoint["rejected"]
        self._inserted = self._inserted_before = checkpoint.get("inserted", 0)
        self._errors = checkpoint["errors"]
        self._seconds_before = checkpoint["seconds"]
        self._ctx.logger.info("goes on at %s %s", self._source.unit, checkpoint["line"])

    def _batches(self) -> Iterator[list[Record]]:
        while True:
            self._ctx.raise_if_canceled()
            batch = self._source.take(self._payload.batch_rows)
            if not batch and not self._source.refused:
                return
            yield batch

    def _prepared(self, layout: Layout, batch: list[Record]) -> Iterator[Record]:
        """The records as COPY takes them; what can be seen to be bad here is rejected here."""
        if layout.as_is(batch):
            yield from batch
        else:
            for line, data in batch:
                try:
                    row = layout.encode(data)
                except RowProblem as exc:
                    self._reject(line, data, str(exc))
                    continue
                if row is not None:
                    yield line, row
        for line, data, reason in self._source.refused:
            self._reject(line, data, reason)
        self._source.refused.clear()

    def _reject(self, line: int, data: bytes, message: str, column: str | None = None) -> None:
        self._rejected += 1
        if len(self._errors) < self._payload.max_errors or not self._errors:
            text = data[:200].decode(errors="replace").replace("\0", "\ufffd").rstrip("\r\n")
            item = {self._source.unit: line, "text": text} | ({"column": column} if column else {})
            self._errors.append({"kind": "row", "message": message[:300], "item": item})

    def _commit(self) -> None:
        """The batch and the place where the next one begins, or neither."""
        source = self._source
        if source.changed:
            raise FileProblem(
                f"{self._payload.path!r} was changed while it was read, before {source.unit} {source.line}"
            )
        value = {
            "source": source.identity,
            "offset": source.offset,
            "line": source.line,
            "rows": self._rows,
            "rejected": self._rejected,
            "inserted": self._inserted,
            "errors": self._errors,
            "seconds": self._seconds,
        }
        self._ctx.checkpoint(self._conn, value)
        self._conn.commit()
        self._ctx.progress(source.percent, f"{self._rows} rows loaded, {self._rejected} rejected")

    @property
    def _seconds(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 3)

    def _result(self) -> Any:
        result = {
            "rows": self._rows,
            "rejected": self._rejected,
            "bytes": self._source.bytes,
            "seconds": self._seconds,
        }
        if self._payload.key is not None:
            others = self._rows - self._inserted
            updates = self._payload.on_conflict != "skip"
            result |= {
                "inserted": self._inserted,
                "updated": others if updates else 0,
                "skipped": 0 if updates else others,
            }
        if not self._rejected:
            return result
        if not self._rows:
            first = self._errors[0]
            unit = self._source.unit
            where = f"{unit} {first['item'][unit]}: {first['message']}"
            raise Fail(f"none of {self._rejected} rows could be loaded; {where}")
        return Partial(result, self._errors[: self._payload.max_errors])
