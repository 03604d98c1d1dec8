"""Parquet for bulk_import: a file as batches of rows, each as a line of CSV for COPY; in bounded memory.

This module needs pyarrow, and is imported where a file is Parquet.

What PostgreSQL should judge is left to it: a text that is no UTF-8 or a date out of range is a bad row, not a bad file.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
from pyarrow import compute, csv, parquet, types

from .import_file import MAX_BATCH_BYTES, FileProblem, OpenFile, Record
from .import_rows import Columns, Layout, Number, dump_json, targets
from .import_table import Table, TableProblem

CHUNK_ROWS = 4096  # converted at a time, or fewer where rows are wide: enough that a call costs nothing
BUFFER_BYTES = 1 << 20  # of each column that is read
TAIL_BYTES = 65536  # the footer tells one file from another, since it says where everything is

Convert = Callable[[Any], Any]


class ParquetSource(OpenFile):
    """A Parquet file as batches of records; `offset` is the number of rows before the next one."""

    unit = "row"

    def __init__(self, fd: int, *, name: str) -> None:
        super().__init__(fd, name=name)
        try:
            self._parquet = parquet.ParquetFile(self._file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as exc:
            self.close()
            raise FileProblem(f"{name!r} is no Parquet file: {_line(exc)}") from exc
        self._rows = self._parquet.metadata.num_rows
        self._convert: list[tuple[str, Convert]] = []
        self._pending: deque[bytes] = deque()
        self._chunks: Iterator[Any] = iter(())
        self.seek(0, 1)

    @property
    def identity(self) -> dict[str, Any]:
        """Tells this file from another one under the same name, on whatever host."""
        return super().identity | {"tail": self._digest(TAIL_BYTES, max(0, self.bytes - TAIL_BYTES))}

    @property
    def percent(self) -> float:
        """How many of the rows were read."""
        return 100.0 * self.offset / self._rows if self._rows else 100.0

    def layout(self, table: Table, columns: Columns) -> Layout:
        """Which columns go where; each row then comes as a line of CSV already."""
        schema = self._parquet.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise FileProblem("the file names a column twice")
        target = targets(columns, schema.names)
        self._convert = [(name, _converter(schema.field(name), target[name], table)) for name in target]
        return Layout(list(target.values()), "", lambda row: row, lambda _: True)

    def seek(self, offset: int, line: int) -> None:
        """Goes on at a row: whole row groups before it are not read."""
        self.offset, self.line = offset, line
        self._pending.clear()
        self._chunks = self._read(offset)

    def take(self, count: int) -> list[Record]:
        """The next rows, at most `count` and about MAX_BATCH_BYTES."""
        records: list[Record] = []
        size = 0
        while len(records) < count and size < MAX_BATCH_BYTES:
            if not self._pending:
                chunk = self._next_chunk()
                if chunk is None:
                    break
                self._pending.extend(_lines(chunk))
                continue
            row = self._pending.popleft()
            records.append((self.line, row))
            self.line += 1
            size += len(row)
        self.offset += len(records)
        return records

    def _next_chunk(self) -> pa.RecordBatch | None:
        try:
            return next(self._chunks, None)
        except (pa.ArrowException, OSError) as exc:
            raise FileProblem(f"{self._name!r} is damaged or cut off after row {self.line - 1}: {_line(exc)}") from exc

    def _read(self, skip: int) -> Iterator[pa.RecordBatch]:
        """The columns to load from row `skip` on, converted, a chunk at a time."""
        names = [name for name, _ in self._convert]
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            if skip >= rows:
                skip -= rows
                continue
            wide = self._parquet.metadata.row_group(group).total_byte_size // rows  # of a row, unpacked
            size = max(1, min(CHUNK_ROWS, MAX_BATCH_BYTES // max(1, wide)))
            for chunk in self._parquet.iter_batches(size, row_groups=[group], columns=names, use_threads=False):
                if skip >= chunk.num_rows:
                    skip -= chunk.num_rows
                    continue
                kept = chunk.slice(skip)
                skip = 0
                arrays = [convert(kept.column(name)) for name, convert in self._convert]
                yield pa.RecordBatch.from_arrays(arrays, names=names)


def _lines(chunk: pa.RecordBatch) -> list[bytes]:
    """The rows as CSV: texts in quotes, so that an empty one is no null, and nulls as nothing."""
    sink = io.BytesIO()
    csv.write_csv(chunk, sink, csv.WriteOptions(include_header=False))
    lines = [line + b"\n" for line in sink.getvalue().split(b"\n")[:-1]]
    if len(lines) == chunk.num_rows:
        return lines
    rows: list[bytes] = []
    row = b""
    for line in lines:  # a text has line breaks of its own
        row += line
        if row.count(b'"') & 1 == 0:
            rows.append(row)
            row = b""
    return rows


def _converter(field: pa.Field, column: str, table: Table) -> Convert:
    """What makes a column's values such that their CSV is what PostgreSQL reads."""
    kind = field.type
    target = table.types.get(column, "")
    if isinstance(kind, pa.BaseExtensionType):
        inner = _converter(field.with_type(kind.storage_type), column, table)
        return lambda values: inner(values.storage)
    if types.is_dictionary(kind):
        inner = _converter(field.with_type(kind.value_type), column, table)
        return lambda values: inner(values.dictionary_decode())
    if types.is_nested(kind):
        if target and target not in ("json", "jsonb", "text", "character varying"):
            raise TableProblem(f"column {field.name!r} of the file is nested: its column must be json, jsonb or text")
        return _json
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        # PostgreSQL reads a uuid from 32 digits, too.
        prefix = {"bytea": "\\x", "uuid": ""}.get(target)
        if prefix is not None:
            return lambda values: pa.array(
                [v if v is None else prefix + v.hex() for v in values.to_pylist()], pa.string()
            )
        return lambda values: values.cast(pa.binary()).cast(pa.string(), safe=False)
    if types.is_decimal(kind) or types.is_null(kind):
        return lambda values: values.cast(pa.string())
    if types.is_float16(kind):
        return lambda values: values.cast(pa.float32())
    if types.is_duration(kind):
        # An interval has microseconds.
        return lambda values: compute.binary_join_element_wise(
            values.cast(pa.duration("us"), safe=False).cast(pa.int64()).cast(pa.string()), " microseconds", ""
        )
    return lambda values: values


def _json(values: pa.Array) -> pa.Array:
    rows = values.to_pylist(maps_as_pydicts="lossy")
    return pa.array([None if row is None else dump_json(_plain(row)) for row in rows], pa.string())


def _plain(value: Any) -> Any:
    """A nested value as JSON knows it."""
    match value:
        case dict():
            return {key if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case Decimal():
            return Number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta() | UUID():
            return str(value)
        case bytes():
            return value.decode(errors="replace")
        case _:
            return value


def _line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
