"""Type `export_query`: the rows of a named query as a file in the store, streamed: memory does not grow with them."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from dispatcher import Context, Fail, Job, executor

from .export_formats import Format, Produced, csv_format, ndjson_format
from .queries import Reading, find_query, reading

GZIP = 16 + zlib.MAX_WBITS  # zlib's sign for the format of gzip
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$"


class ExportQueryPayload(BaseModel):
    """What `export_query` accepts."""

    model_config = ConfigDict(extra="forbid")

    query: str
    """The name of a query in the administrator's file."""
    params: dict[str, JsonValue] = {}
    format: Literal["csv", "ndjson", "parquet"] = "csv"
    name: str | None = Field(None, pattern=FILE_NAME, max_length=150)
    """Of the file; without it made of the query's name and the format."""
    gzip: bool = False
    header: bool = True
    """CSV: whether the first line has the columns' names."""
    delimiter: str = Field(",", min_length=1, max_length=1)
    """CSV."""
    null: str = ""
    """CSV: what stands for null; an empty text is written with quotes."""

    @field_validator("name")
    @classmethod
    def _free(cls, name: str | None) -> str | None:
        if name == "result.json":
            raise ValueError("this name is kept for large results")
        return name

    @field_validator("delimiter")
    @classmethod
    def _separates(cls, delimiter: str) -> str:
        if delimiter in '"\r\n' or (not " " <= delimiter <= "~" and delimiter != "\t"):
            raise ValueError("delimiter must be an ASCII character other than a quote or line break")
        return delimiter

    @model_validator(mode="after")
    def _fits_together(self) -> ExportQueryPayload:
        if self.gzip and self.format == "parquet":
            raise ValueError("gzip is not for Parquet, which is compressed within")
        if self.delimiter in self.null or set(self.null) & set('"\r\n\0'):
            raise ValueError("null must not contain the delimiter, a quote or line break")
        return self

    @property
    def file_name(self) -> str:
        """The name given, or one that is made."""
        made = re.sub(r"[^A-Za-z0-9_.-]", "_", self.query)[:100].lstrip(".-") or "query"
        return self.name or f"{made}.{self.format}{'.gz' if self.gzip else ''}"


@executor(
    "export_query",
    limit=2,
    timeout=timedelta(hours=1),
    max_attempts=5,
    payload=ExportQueryPayload,
)
def export_query(job: Job, ctx: Context) -> dict[str, Any]:
    """Exports the rows of a named query to CSV, NDJSON or Parquet."""
    payload: ExportQueryPayload = job.payload
    started = time.monotonic()
    with reading(ctx, find_query(payload.query, payload.params)) as query:
        export = _format(payload, query)
        total = _estimate(query)
        with query.conn.cursor() as cursor:
            with cursor.copy(export.statement) as copy:
                # Pulled through by the store, not by way of a file: the disk may be smaller than the export, and what
                # breaks off leaves nothing, for the store has a file only when it is whole.
                stream = Pulled(_told(ctx, export.blocks(copy), total), gzip=payload.gzip)
                url = ctx.store(payload.file_name, stream)
            rows = max(0, cursor.rowcount)
    return {
        "rows": rows,
        "bytes": stream.bytes,
        "url": url,
        "format": payload.format,
        "seconds": round(time.monotonic() - started, 3),
        "columns": [{"name": column.name, "type": column.type_display} for column in query.columns],
    }


def _format(payload: ExportQueryPayload, query: Reading) -> Format:
    match payload.format:
        case "csv":
            return csv_format(query, header=payload.header, delimiter=payload.delimiter, null=payload.null)
        case "ndjson":
            return ndjson_format(query)
        case "parquet":
            try:
                from .export_parquet import parquet_format  # noqa: PLC0415 - pyarrow may not be installed
            except ModuleNotFoundError:
                raise Fail("the format parquet needs pyarrow: install pg-dispatcher[parquet]") from None
            return parquet_format(query)


def _estimate(query: Reading) -> float:
    """How many rows the planner expects: a count could take as long as the export."""
    row = query.conn.execute(b"explain (format json) " + query.statement).fetchone()
    return max(1.0, float(row[0][0]["Plan"]["Plan Rows"])) if row else 1.0


def _told(ctx: Context, blocks: Iterable[Produced], total: float) -> Iterator[bytes]:
    for block in blocks:
        ctx.progress(min(99.0, 100 * block.rows / total), f"{block.rows} rows")
        yield block.data


class Pulled:
    """A stream for the store: blocks that are made when it reads."""

    def __init__(self, blocks: Iterator[bytes], *, gzip: bool) -> None:
        self._blocks = _zipped(blocks) if gzip else blocks
        self._left = memoryview(b"")
        self.bytes = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._left = memoryview(block)
        part, self._left = bytes(self._left[:size]), self._left[size:]
        self.bytes += len(part)
        return part


def _zipped(blocks: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=GZIP)
    for block in blocks:
        yield packer.compress(block)
    yield packer.flush()
