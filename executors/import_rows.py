"""Rows for bulk_import: which columns a file has, and how its records become lines of CSV for COPY.

A CSV record is passed on as it stands wherever it can be: that is fast, and keeps apart what PostgreSQL keeps
apart, a null and an empty text in quotes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .import_file import FileProblem, Record, Source

_QUOTE = '"'
Columns = Sequence[str] | Mapping[str, str] | None


class RowProblem(Exception):
    """This record can be no row; the reason in one line."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The table's columns to fill, in order, and what makes a record a line of CSV with these fields."""

    columns: list[str]
    null: str
    encode: Callable[[bytes], bytes | None]
    """None for a blank line. Raises RowProblem."""
    as_is: Callable[[list[Record]], bool]
    """True where encode() would change and refuse nothing."""


def csv_layout(
    source: Source, table_columns: list[str], *, columns: Columns, header: bool, delimiter: bytes, null: str
) -> Layout:
    """For CSV; reads the header, if there is one."""
    names = _read_header(source, delimiter) if header else _names_without_header(columns, table_columns)
    target = targets(columns, names)
    picked = [index for index, name in enumerate(names) if name in target]
    whole = len(picked) == len(names)

    def encode(record: bytes) -> bytes | None:
        row = record.removesuffix(b"\n").removesuffix(b"\r")
        if not row and len(names) > 1:
            return None
        _check_text(row)
        if not whole:
            fields = split_csv(row, delimiter)
            if len(fields) != len(names):
                raise RowProblem(f"{len(fields)} fields, expected {len(names)}")
            row = delimiter.join([fields[index] for index in picked])
        # Unquoted and alone on its line, this would end the COPY in silence.
        return b'"\\."\n' if row == b"\\." else row + b"\n"

    def as_is(batch: list[Record]) -> bool:
        if not whole:
            return False
        text = b"".join([data for _, data in batch])
        if b"\0" in text or b"\r" in text or b"\\." in text or b"\n\n" in text or not text.endswith(b"\n"):
            return False
        return not text.startswith(b"\n") and (text.isascii() or _is_utf8(text))

    return Layout([target[names[index]] for index in picked], null, encode, as_is)


def ndjson_layout(
    source: Source, table_columns: list[str], *, columns: Columns, json_columns: Collection[str]
) -> Layout:
    """For one JSON object a line; without `columns`, the keys of the first object are the columns."""
    if columns is None:
        columns = _keys_of_first(source, table_columns)
        strict = True
    else:
        strict = False
    target = targets(columns, list(columns))
    fields = [(name, _json_field if column in json_columns else _csv_field) for name, column in target.items()]

    def encode(record: bytes) -> bytes | None:
        if not record.strip():
            return None
        row = _parse_object(record)
        if strict and not row.keys() <= target.keys():
            raise RowProblem(f"unknown key {next(key for key in row if key not in target)!r}")
        return _csv_row([field(row.get(name)) for name, field in fields])

    return Layout(list(target.values()), "", encode, lambda _: False)


def split_csv(row: bytes, delimiter: bytes) -> list[bytes]:
    """The fields as they stand in the file, quotes included, divided as PostgreSQL does."""
    parts = row.split(delimiter)
    if b'"' not in row:
        return parts
    fields: list[bytes] = []
    start = quotes = 0
    for index, part in enumerate(parts):
        quotes += part.count(b'"')
        if not quotes & 1:  # a delimiter inside quotes divides nothing
            fields.append(delimiter.join(parts[start : index + 1]))
            start = index + 1
    return fields


def _read_header(source: Source, delimiter: bytes) -> list[str]:
    records = source.take(1)
    if not records:
        raise FileProblem("the file has no header: it is empty, or its first line is no CSV")
    try:
        text = records[0][1].decode()
    except UnicodeDecodeError:
        raise FileProblem("the header is no UTF-8 text") from None
    names = next(csv.reader([text.rstrip("\r\n")], delimiter=delimiter.decode()), [])
    if not names or len(set(names)) < len(names):
        raise FileProblem("the header is empty" if not names else "the header names a column twice")
    return names


def _names_without_header(columns: Columns, table_columns: list[str]) -> list[str]:
    if isinstance(columns, Mapping):
        raise FileProblem("columns cannot be a mapping where the file has no header: give a list")
    return list(columns or table_columns)


def targets(columns: Columns, names: list[str]) -> dict[str, str]:
    """The file's column → the table's, for those to load."""
    if columns is None:
        return {name: name for name in names}
    target = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    missing = [name for name in target if name not in names]
    if missing:
        raise FileProblem(f"the file has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}")
    return target


def _check_text(row: bytes) -> None:
    if b"\0" in row:
        raise RowProblem("a NUL byte, which PostgreSQL cannot store")
    if not (row.isascii() or _is_utf8(row)):
        raise RowProblem("no valid UTF-8")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class Number(str):
    """A fraction as written: a float would lose digits of a numeric column's value."""

    __slots__ = ()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_float=Number, parse_constant=_refuse_constant)


def _parse_object(record: bytes) -> dict[str, Any]:
    try:
        row = _decoder.decode(record.decode())
    except UnicodeDecodeError:
        raise RowProblem("no valid UTF-8") from None
    except RecursionError:
        raise RowProblem("invalid JSON: nested too deeply") from None
    except ValueError as exc:
        raise RowProblem(f"invalid JSON: {exc}") from None
    if not isinstance(row, dict):
        raise RowProblem("no JSON object")
    return row


def _csv_row(fields: list[str]) -> bytes:
    text = ",".join(fields) + "\n"
    if "\0" in text:
        raise RowProblem("a NUL character, which PostgreSQL cannot store")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RowProblem("half of a surrogate pair, which is no character") from None


def _csv_field(value: Any) -> str:
    kind = type(value)  # an exact comparison is twice as fast as isinstance() and match
    if kind is str:
        return f'"{value.replace(_QUOTE, _QUOTE * 2)}"'
    if value is None:
        return ""
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is Number:
        return str(value)
    return _json_field(value)


def _json_field(value: Any) -> str:
    """For a column of type json, in which a text is a JSON string; null is SQL's here too."""
    return "" if value is None else f'"{dump_json(value).replace(_QUOTE, _QUOTE * 2)}"'


def dump_json(value: Any) -> str:
    """A nested value as JSON again, its numbers as they were written."""
    match value:
        case Number():
            return value
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)}: {dump_json(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(dump_json, value)) + "]"
        case _:
            return json.dumps(value)


def _keys_of_first(source: Source, table_columns: list[str]) -> list[str]:
    """The keys of the first good line among the first hundred; leaves the source at its start."""
    keys = table_columns
    for _, record in source.take(100):
        try:
            keys = list(_parse_object(record))
            break
        except RowProblem:
            continue
    source.seek(0, 1)
    return keys
