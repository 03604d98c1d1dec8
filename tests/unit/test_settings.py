"""Settings: which source wins, what is refused, and that no message shows a password."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.cli.config import masked
from dispatcher.db import check_dsn
from dispatcher.errors import SettingsError
from dispatcher.settings import format_duration, load, parse_duration


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPATCHER_THREADS", "DISPATCHER_CONFIG", "DISPATCHER_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dispatcher.toml"
    path.write_text('threads = 2\npoll_interval = "3s"\n[limits]\nmail = 5\n')
    return path


def test_flag_wins_over_environment_over_file_over_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_THREADS", "3")
    settings, origin = load({"threads": "4"}, str(file))
    assert (settings.threads, origin["threads"]) == (4, "flag")
    settings, origin = load({"threads": None}, str(file))
    assert (settings.threads, origin["threads"]) == (3, "environment DISPATCHER_THREADS")
    monkeypatch.delenv("DISPATCHER_THREADS")
    settings, origin = load({}, str(file))
    assert (settings.threads, origin["threads"]) == (2, f"file {file}")
    assert settings.limits == {"mail": 5}
    settings, origin = load()
    assert (settings.threads, origin["threads"]) == (16, "default")


def test_database_url_counts_only_without_our_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://theirs/db")
    assert load()[0].dsn.get_secret_value() == "postgresql://theirs/db"
    monkeypatch.setenv("DISPATCHER_DSN", "postgresql://ours/db")
    assert load()[0].dsn.get_secret_value() == "postgresql://ours/db"


def test_file_named_by_the_environment_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", str(file))
    assert load()[0].poll_interval == timedelta(seconds=3)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"lease_duration": "2s"}, "lease_duration must exceed twice heartbeat_interval"),
        ({"threads": "0"}, "threads: "),
        ({"threads": "many"}, "threads: "),
        ({"orphan_after": "5s"}, "orphan_after must exceed lease_duration"),
        ({"shutdown_grace": "30s"}, "shutdown_grace must be below orphan_after"),
        ({"poll_interval": "-1s"}, "poll_interval: '-1s' is no duration: it must not be negative"),
        ({"poll_interval": "soon"}, "poll_interval: 'soon' is no duration"),
        ({"limits": "mail"}, "the limit of 'mail' must be a whole number"),
        ({"limits": "mail=0"}, "the limit of 'mail' must be a whole number of 1 or more"),
        ({"limits": "*=0"}, "the limit of '*' must be a whole number of 1 or more"),
        ({"limits": "mail=-1"}, "the limit of 'mail' must be a whole number"),
        ({"log_format": "xml"}, "log_format: "),
        ({"max_stuck_threads": "-1"}, "max_stuck_threads: must be a whole number, half or never"),
        ({"max_stuck_threads": "some"}, "max_stuck_threads: must be a whole number, half or never"),
        ({"metrics_port": "70000"}, "metrics_port: "),
    ],
)
def test_contradicting_or_malformed_settings_are_one_line(flags: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_setting_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dispatcher.toml"
    path.write_text("thread = 2\n")
    with pytest.raises(SettingsError, match="unknown setting in the file: thread"):
        load({}, str(path))


@pytest.mark.parametrize("text", ["threads = ", "\x00"])
def test_file_that_is_not_toml_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dispatcher.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="is not TOML") as caught:
        load({}, str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_named() -> None:
    with pytest.raises(SettingsError, match=r"cannot read the settings file /no/such/file: No such file"):
        load({}, "/no/such/file")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("500ms", 0.5), ("15min", 900), ("1h30min", 5400), ("1d", 86400), ("2w", 1209600), ("7", 7)],
)
def test_durations_in_every_unit(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("value", ["", "s", "5 parsecs", "5s5", "1e3s", "-5s", -5, float("nan"), float("inf"), "101y"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(value)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=36000)))
def test_written_durations_read_back(value: timedelta) -> None:
    value = timedelta(milliseconds=value // timedelta(milliseconds=1))
    again = parse_duration(format_duration(value))
    assert abs(again - value) <= value / 1e5


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cr/et@h/db",
        "postgresql://u:s3c@ret@h/db",
        "host=h password=s3cr et",
        "postgresql://u:s3cret@[::1/db",
        "host=h password='s3cret",
        "s3cret",
    ],
)
def test_malformed_dsn_is_refused_without_showing_any_of_it(dsn: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_dsn(dsn)
    assert "s3c" not in str(caught.value)
    assert "ret" not in str(caught.value).replace("secret", "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["postgresql://u:s3cret@h,i:5432,5433/db", "host=h password=s3cret sslpassword=s3cret"])
def test_shown_dsn_has_no_secret(dsn: str) -> None:
    shown = masked(dsn)
    assert "s3cret" not in shown
    assert "password=***" in shown
    assert "host=h" in shown


@pytest.mark.parametrize(
    ("given", "limit"), [("half", 3), ("never", None), ("NEVER", None), ("0", 0), ("2", 2), (None, 3)]
)
def test_half_of_the_threads_may_be_stuck_unless_told_otherwise(given: str | None, limit: int | None) -> None:
    assert load({"threads": "7", "max_stuck_threads": given})[0].stuck_limit == limit
