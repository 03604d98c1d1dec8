"""Parquet for export_query: typed columns from a binary COPY, in row groups that fit into memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import Column, Copy, postgres, sql

from dispatcher import Fail

from .export_formats import Format, Produced, subquery, unambiguous
from .queries import Reading

# Converted at once, whichever comes first; and a row group, whose size readers need as memory.
BATCH_ROWS, BATCH_BYTES = 10_000, 8 << 20
GROUP_ROWS, GROUP_BYTES = 1 << 17, 64 << 20
MAX_DIGITS = 38  # of a decimal128

TYPES = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the file."""

    name: str
    type: pa.DataType
    cast: str | None
    """To what PostgreSQL has to cast it before."""
    oid: int
    """Of what it sends."""


def parquet_format(query: Reading) -> Format:
    """A file with a field for each column; those of types that Parquet does not know are texts."""
    unambiguous(query.columns)
    fields = [field_of(column) for column in query.columns]
    names = [
        sql.SQL("query.{}{}").format(sql.Identifier(field.name), sql.SQL(f"::{field.cast}" if field.cast else ""))
        for field in fields
    ]
    statement = sql.SQL("copy (select {} from {} as query) to stdout (format binary)").format(
        sql.SQL(", ").join(names), subquery(query)
    )
    return Format(statement, lambda copy: _blocks(copy, fields))


def field_of(column: Column) -> Field:
    """How a column is written."""
    info = postgres.types.get(column.type_code)
    name = "" if info is None else info.name
    if info is not None and info.array_oid == column.type_code:
        if name in TYPES:
            return Field(column.name, pa.list_(TYPES[name]), None, column.type_code)
        return Field(column.name, pa.list_(pa.string()), "text[]", postgres.types["text"].array_oid)
    if name in TYPES:
        return Field(column.name, TYPES[name], None, column.type_code)
    digits, scale = column.precision, column.scale
    if name == "numeric" and digits is not None and scale is not None and 0 <= scale <= digits <= MAX_DIGITS:
        return Field(column.name, pa.decimal128(digits, scale), None, column.type_code)
    return Field(column.name, pa.string(), "text", postgres.types["text"].oid)


class _Sink(io.RawIOBase):
    """Where the writer writes to, and what it wrote is taken from."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        self._written += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        return self._written

    def take(self) -> bytes:
        """What came since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken


def _blocks(copy: Copy, fields: Sequence[Field]) -> Iterator[Produced]:
    copy.set_types([field.oid for field in fields])
    schema = pa.schema([(field.name, field.type) for field in fields])
    sink = _Sink()
    rows = 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in _groups(copy, schema):
            writer.write_table(group, row_group_size=GROUP_ROWS + BATCH_ROWS)
            rows += group.num_rows
            yield Produced(sink.take(), rows)
    yield Produced(sink.take(), rows)


def _groups(copy: Copy, schema: pa.Schema) -> Iterator[pa.Table]:
    batches: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in _batches(copy, schema):
        batches.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.Table.from_batches(batches)
            batches, rows, size = [], 0, 0
    if batches:
        yield pa.Table.from_batches(batches)


def _batches(copy: Copy, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    wide = [
        i for i, field in enumerate(schema) if field.type in (pa.string(), pa.binary()) or pa.types.is_list(field.type)
    ]
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in copy.rows():
        rows.append(row)
        for at in wide:
            size += _weight(row[at])
        if len(rows) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(rows, schema)
            rows, size = [], 0
    if rows:
        yield _batch(rows, schema)


def _weight(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_weight, value))
    return len(value) if isinstance(value, str | bytes) else 8


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field, values in zip(schema, zip(*rows, strict=True), strict=True):
        try:
            arrays.append(pa.array(values, type=field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:  # NaN in a decimal, an array of arrays
            raise Fail(f"column {field.name!r} has a value that is no {field.type}: {exc}; cast it to text") from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
