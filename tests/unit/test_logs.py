"""What is logged comes from anywhere; the log must stay readable by people and by programs."""

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dispatcher import logs

log = logging.getLogger("dispatcher.test")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was written since the last call."""
    return lambda: capsys.readouterr().err


def the_object(stderr: Callable[[], str]) -> dict[str, Any]:
    lines = stderr().splitlines()
    assert len(lines) == 1
    value: dict[str, Any] = json.loads(lines[0])
    return value


def test_text_has_time_with_zone_level_logger_and_fields(stderr: Callable[[], str]) -> None:
    logs.configure("info", "text")
    log.info("leads", extra={"term": 7, "why": "took over", "empty": "", "odd": 'a="b"'})
    time, _, rest = stderr().partition(" ")
    assert datetime.fromisoformat(time).tzinfo is not None
    assert rest == 'INFO    dispatcher.test: leads term=7 why="took over" empty="" odd="a=\\"b\\""\n'


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_logged_cannot_forge_a_record_or_steer_a_terminal(form: str, stderr: Callable[[], str]) -> None:
    logs.configure("info", form)
    evil = "a\n2030-01-01 INFO x: forged\r\x1b[2J\x00\x85\u2028\u202e"
    log.info("got %s", evil, extra={"value": evil, "name\nforged": 1})
    try:
        raise ValueError(evil)
    except ValueError:
        log.exception("failed")
    output = stderr()
    assert not set(output) & (set(evil) - set("a2030-01 INFO x: forged[J\n"))
    if form == "json":
        first, second = (json.loads(line) for line in output.splitlines())
        assert first["event"] == "got " + evil
        assert first["value"] == evil
        assert evil in second["exception"]
    else:
        head, failed, *trace = output.splitlines()
        assert "\\n2030-01-01 INFO x: forged\\r\\x1b[2J\\x00\\x85\\u2028\\u202e" in head
        assert failed.endswith("ERROR   dispatcher.test: failed")
        assert trace
        assert all(line.startswith("    | ") for line in trace)


def test_json_is_one_object_a_line_whatever_the_fields_hold(stderr: Callable[[], str]) -> None:
    logs.configure("info", "json")
    loop: list[object] = []
    loop.append(loop)
    fields: dict[str, object] = {
        "number": 1.5,
        "flag": True,
        "none": None,
        "list": [1, "two"],
        "path": Path("/x"),
        "nested": {"at": Path("/y")},
        "nan": float("nan"),
        "loop": loop,
        "bad": Unprintable(),
        "surrogate": "\udc80é",
        "event": "mine",
    }
    log.warning("hello %s", "wörld", extra=fields)
    found = the_object(stderr)
    assert datetime.fromisoformat(found["ts"]).tzinfo is not None
    assert (found["level"], found["logger"], found["event"]) == ("warning", "dispatcher.test", "hello wörld")
    assert (found["number"], found["flag"], found["none"], found["list"]) == (1.5, True, None, [1, "two"])
    assert (found["path"], found["nested"], found["nan"]) == ("/x", {"at": "/y"}, "nan")
    assert found["bad"] == "<Unprintable that cannot be shown>"
    assert found["surrogate"] == "\udc80é"
    assert found["event_"] == "mine"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_that_cannot_be_formatted_is_logged_all_the_same(form: str, stderr: Callable[[], str]) -> None:
    logging.getLogger().handlers.clear()  # pytest's own raises
    logs.configure("info", form)
    log.info("only %s", *("one", "two"))
    log.info("%s", Unprintable())
    log.info(Unprintable())
    log.error("with an exception", exc_info=Unraisable())
    output = stderr()
    assert len([line for line in output.splitlines() if " | " not in line]) == 4
    assert "only %s" in output


class Unraisable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_megabyte_is_cut(form: str, stderr: Callable[[], str]) -> None:
    logs.configure("info", form)
    log.info("x" * 2**20, extra={"y": "y" * 2**20, "z": ["z"] * 2**20})
    try:
        raise ValueError("e" * 2**20)
    except ValueError:
        log.exception("failed")
    output = stderr()
    found = len(output), "(1048576 characters)" in output  # a failing assertion would print the megabyte
    assert found < (100_000, True)
    assert found[1]


def test_a_standard_error_that_is_gone_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    logs.configure("info", "text")
    log.info("nobody hears this")
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure("info", "text")
    log.info("nor this")


def test_configuring_again_replaces_and_does_not_double(stderr: Callable[[], str]) -> None:
    logs.configure("debug", "text")
    logs.configure("warning", "json")
    log.info("below the level")
    log.warning("once")
    assert the_object(stderr)["event"] == "once"


def test_the_journal_gets_priorities_on_every_line_and_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure("debug", "text")
        log.debug("d")
        log.info("i")
        log.warning("w")
        log.error("e", exc_info=ValueError("broken"))
        log.critical("c")
        assert (tmp_path / "journal").read_text().splitlines() == [
            "<7>dispatcher.test: d",
            "<6>dispatcher.test: i",
            "<4>dispatcher.test: w",
            "<3>dispatcher.test: e",
            "<3>    | ValueError: broken",
            "<2>dispatcher.test: c",
        ]


def test_a_redirected_standard_error_is_not_taken_for_the_journal(
    monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    logs.configure("info", "text")
    log.info("hello")
    assert not stderr().startswith("<")
