"""The store: a file is whole or not there, no name leads out of its folder, and nothing of others is removed."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fsspec
import pytest

from dispatcher.errors import SettingsError, StoreError
from dispatcher.store import Store, load_result, open_store, read
from dispatcher.store_source import CHUNK, RESULT, check_name

INSTALLATION = UUID(int=7)


def nothing() -> None:
    """Nobody asks the job to stop."""


@pytest.fixture(params=["folder", "file URL", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Each kind of store."""
    match request.param:
        case "folder":
            yield str(tmp_path / "results of the fleet")
        case "file URL":
            yield (tmp_path / "a b%41").as_uri()
        case _:
            root = f"memory://{uuid4()}/results"
            yield root
            with contextlib.suppress(FileNotFoundError):
                fsspec.filesystem("memory").rm(root, recursive=True)


@pytest.fixture
def store(location: str) -> Store:
    return open_store(location, INSTALLATION)


@pytest.mark.parametrize(
    "name",
    [
        "report.pdf",
        "a b",
        "%41",
        "#?*[x]",
        "ä🎉",
        "-rf",
        ".hidden",
        "..." + "x" * 190,
        "back\\slash",
        "line\nbreak",
        "a::b",
        "s3:",
        "~",
    ],
)
def test_what_is_stored_under_any_name_is_read_back(store: Store, name: str) -> None:
    url = store.put(12, 3, check_name(name), b"data of " + name.encode(), nothing)
    assert read(url) == b"data of " + name.encode()
    assert f"/{INSTALLATION}/12/3/" in url


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "/etc/passwd", "a\x00b", "x" * 201, "🎉" * 64, "\ud800", RESULT]
)
def test_bad_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(StoreError) as caught:
        check_name(name)
    assert "\n" not in str(caught.value)


class Counted(io.RawIOBase):
    """A stream of so many bytes that counts how much is asked for at once."""

    def __init__(self, size: int, fail_at: int | None = None) -> None:
        self.left, self.largest, self.fail_at = size, 0, fail_at

    def read(self, size: int = -1, /) -> bytes:
        self.largest = max(self.largest, size if size >= 0 else sys.maxsize)
        if self.fail_at is not None and self.left <= self.fail_at:
            raise OSError("the source broke")
        chunk = b"x" * min(size, self.left)
        self.left -= len(chunk)
        return chunk


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 1])
def test_stream_is_copied_in_chunks(store: Store, size: int) -> None:
    stream = Counted(size)
    url = store.put(1, 1, "big", stream, nothing)
    assert len(read(url)) == size
    assert stream.largest == CHUNK


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path", "file"])
def test_sources_of_each_kind(store: Store, tmp_path: Path, kind: str) -> None:
    data = os.urandom(2 * CHUNK + 5)
    (tmp_path / "source").write_bytes(data)
    with (tmp_path / "source").open("rb") as file:
        sources = {
            "bytes": data,
            "bytearray": bytearray(data),
            "memoryview": memoryview(data),
            "path": tmp_path / "source",
            "file": file,
        }
        url = store.put(1, 1, "x", sources[kind], nothing)  # type: ignore[arg-type]
    assert read(url) == data


@pytest.mark.parametrize("source", ["text", io.StringIO("text"), 7, None, [b"x"]])
def test_source_that_gives_no_bytes_is_refused_and_leaves_nothing(store: Store, source: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        store.put(1, 1, "x", source, nothing)
    store.remove(1)
    assert list(store.job_ids()) == []


def test_source_that_breaks_leaves_the_older_file_of_that_name(store: Store) -> None:
    url = store.put(1, 1, "x", b"whole", nothing)
    with pytest.raises(OSError, match="broke"):
        store.put(1, 1, "x", Counted(3 * CHUNK, fail_at=CHUNK), nothing)
    assert read(url) == b"whole"


def test_job_that_is_asked_to_stop_stops_between_two_chunks(store: Store) -> None:
    class Stopped(BaseException):
        pass

    checks = iter([None, None, Stopped()])

    def check() -> None:
        if (stop := next(checks)) is not None:
            raise stop

    with pytest.raises(Stopped):
        store.put(1, 1, "x", Counted(100 * CHUNK), check)
    store.remove(1)
    assert list(store.job_ids()) == []


def test_half_a_file_is_never_under_its_name(tmp_path: Path) -> None:
    store, seen = open_store(str(tmp_path), INSTALLATION), []

    class Looking(Counted):
        def read(self, size: int = -1, /) -> bytes:
            seen.append((tmp_path / str(INSTALLATION) / "1" / "1" / "x").exists())
            return super().read(size)

    store.put(1, 1, "x", Looking(2 * CHUNK), nothing)
    assert seen == [False, False, False]
    assert [path.name for path in (tmp_path / str(INSTALLATION) / "1" / "1").iterdir()] == ["x"]


def test_later_attempt_and_late_one_do_not_meet(store: Store) -> None:
    newer = store.put(1, 2, "x", b"newer", nothing)
    late = store.put(1, 1, "x", b"late", nothing)
    assert (read(newer), read(late)) == (b"newer", b"late")


def test_removing_a_job_removes_all_its_attempts_and_no_other_job(store: Store) -> None:
    mine = [store.put(1, attempt, name, b"x", nothing) for attempt in (1, 2, 11) for name in ("a", "b*")]
    others = [store.put(job, 1, "a", b"x", nothing) for job in (2, 10, 11, 111)]
    assert sorted(store.job_ids()) == [1, 2, 10, 11, 111]
    store.remove(1)
    store.remove(1)  # and once more
    store.remove(999)
    for url in mine:
        with pytest.raises(StoreError, match="not there"):
            read(url)
    assert {read(url) for url in others} == {b"x"}
    assert sorted(store.job_ids()) == [2, 10, 11, 111]


def test_two_installations_share_a_store(location: str) -> None:
    one, other = open_store(location, UUID(int=1)), open_store(location, UUID(int=2))
    kept = other.put(5, 1, "x", b"kept", nothing)
    one.put(5, 1, "x", b"mine", nothing)
    one.remove(5)
    assert list(one.job_ids()) == []
    assert read(kept) == b"kept"


def test_files_of_others_and_links_stay(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), INSTALLATION)
    store.put(1, 1, "x", b"mine", nothing)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "1").mkdir(parents=True)
    (elsewhere / "1" / "precious").touch()
    ours = tmp_path / str(INSTALLATION)
    (ours / "1" / "README").touch()
    (ours / "1" / "2").symlink_to(elsewhere / "1")
    (ours / "1" / "1" / "link").symlink_to(elsewhere / "1" / "precious")
    (ours / "1" / "1" / "deeper").mkdir()
    (ours / "2").symlink_to(elsewhere)
    for name in ("03", "x3", "-4", "1.5", "9" * 30):
        (ours / name).mkdir()
    (ours / "6").touch()
    assert list(store.job_ids()) == [1]
    for id in (1, 2, 6):
        store.remove(id)
    assert (elsewhere / "1" / "precious").exists()
    assert sorted(path.name for path in (ours / "1").rglob("*")) == ["1", "2", "README", "deeper", "link"]
    assert (ours / "2").is_symlink()
    assert (ours / "6").exists()


def test_stray_file_of_others_under_a_url_stays() -> None:
    root = f"memory://{uuid4()}"
    store, fs = open_store(root, INSTALLATION), fsspec.filesystem("memory")
    store.put(1, 1, "x", b"mine", nothing)
    for stray in ("README", "1/deeper/x", "x/y"):
        fs.pipe_file(f"{root}/{INSTALLATION}/1/{stray}", b"theirs")
    store.remove(1)
    left = sorted(path.partition(f"{INSTALLATION}/")[2] for path in fs.find(root))
    assert left == ["1/1/deeper/x", "1/README", "1/x/y"]


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("ftp://me:secret@host/results", "password"),
        ("s3://bucket/*", r"\*"),
        ("nonsense://bucket", "cannot be opened"),
        ("/proc/nowhere", "cannot make the folder"),
        ("/dev/null/x", "cannot make the folder"),
    ],
)
def test_store_that_cannot_be_one_is_refused_at_start(location: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        open_store(location, INSTALLATION)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_folder_needs_no_fsspec_and_a_url_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "fsspec":
            raise ModuleNotFoundError("No module named 'fsspec'", name="fsspec")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)
    store = open_store(str(tmp_path), INSTALLATION)
    assert read(store.put(1, 1, "x", b"x", nothing)) == b"x"
    store.remove(1)
    with pytest.raises(SettingsError, match=r"pip install 'pg-dispatcher\[store\]'"):
        open_store("s3://bucket/results", INSTALLATION)
    with pytest.raises(StoreError, match=r"pip install 'pg-dispatcher\[store\]'"):
        read("s3://bucket/results/1/1/x")


def test_result_is_loaded_only_from_its_own_file(store: Store) -> None:
    large = store.put(1, 1, RESULT, '{"rows": "ä"}'.encode(), nothing)
    assert load_result(None, large) == {"rows": "ä"}
    report = store.put(1, 1, "report.pdf", b"%PDF", nothing)
    assert load_result(None, report) is None
    assert load_result([1], report) == [1]
    assert load_result(None, None) is None
    store.remove(1)
    with pytest.raises(StoreError, match="not there"):
        load_result(None, large)


def test_damaged_result_is_one_clear_error(store: Store) -> None:
    with pytest.raises(StoreError, match="no JSON"):
        load_result(None, store.put(1, 1, RESULT, b'{"rows', nothing))
