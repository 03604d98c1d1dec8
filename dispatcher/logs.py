"""Logging on standard error: text for people, or one JSON object a line. It never raises, whatever is logged.

What is logged may come from anywhere: a record stays one line, and nothing in it can look like another record
or steer a terminal. Text shows an exception on lines of its own, each marked, since people read it; JSON has
it as one field.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import datetime

LONGEST = 10_000  # characters of one value; the journal cuts a line at 48 KiB, and a cut line is no JSON
_STANDARD = frozenset([*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"])
_RESERVED = frozenset(["ts", "level", "logger", "event", "exception"])
_PRIORITY = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
# Control characters, the two separators that some take for line breaks, and what turns the writing around.
_ESCAPES = {
    code: {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def configure(level: str, format: str) -> None:  # noqa: A002 # as the setting ends, log_format
    """Sends all records from `level` on to standard error, as "text" or "json". May be called again."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Json() if format == "json" else _Text(journal=_is_journal()))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.INFO))
    logging.captureWarnings(capture=True)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg] # generic only for type checkers
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # the base class's name
        """Standard error is gone: there is nobody left to tell."""


class _Text(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {_plain(name)}={_quoted(_text(value))}" for name, value in _extra(record).items())
        head = f"{_plain(record.name)}: {_plain(_message(record))}{fields}"
        lines = [head, *(f"    | {_plain(line)}" for line in _exception(record).splitlines())]
        if self._journal:
            # The journal has the time itself, and takes each line for an entry.
            prefix = f"<{next((number for least, number in _PRIORITY if record.levelno >= least), 7)}>"
            return "\n".join(prefix + line for line in lines)
        lines[0] = f"{_time(record)} {record.levelname:<7} {head}"
        return "\n".join(lines)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _message(record),
        }
        for name, value in _extra(record).items():
            fields[name + "_" if name in _RESERVED else name] = _jsonable(value)
        if trace := _exception(record):
            fields["exception"] = trace
        return json.dumps(fields)  # ASCII, whatever the locale is


def _is_journal() -> bool:
    """Whether standard error is the stream to the journal that systemd gave us, not redirected since."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _message(record: logging.LogRecord) -> str:
    try:
        return _short(record.getMessage())
    except Exception:  # noqa: BLE001 # wrong arguments, or somebody's __str__
        return _short(f"{_text(record.msg)} (arguments: {_text(record.args)})")


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _exception(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        try:
            text = "".join(traceback.format_exception(record.exc_info[1]))
        except Exception:  # noqa: BLE001 # somebody's __str__
            text = f"{type(record.exc_info[1]).__name__}, which cannot be shown"
    else:
        text = record.exc_text or record.stack_info or ""
    # The end says most.
    return text if len(text) <= 2 * LONGEST else f"… {text[-2 * LONGEST :]}"


def _text(value: object) -> str:
    try:
        return _short(str(value))
    except Exception:  # noqa: BLE001 # somebody's __str__
        return f"<{type(value).__name__} that cannot be shown>"


def _jsonable(value: object) -> object:
    if isinstance(value, str):
        return _short(value)
    try:
        text = json.dumps(value, default=_text, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return _text(value)
    parsed: object = json.loads(text) if len(text) <= LONGEST else _short(text)
    return parsed


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def _plain(text: str) -> str:
    return text.translate(_ESCAPES)


def _quoted(text: str) -> str:
    plain = _plain(text)
    if plain and not any(char in plain for char in ' "='):
        return plain
    return '"' + plain.replace('"', '\\"') + '"'
