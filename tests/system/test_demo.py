"""The demo is what a stranger runs first: it must hold at small size, and stop without a trace."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dispatcher.demo import main
from dispatcher.demo_flights import MISSING
from dispatcher.demo_jobs import Run, close_cut_off, most_at_once, overlapping_attempts, read_runs

pytestmark = pytest.mark.system

ROWS = 200_000  # progress is seen every 0.2 s: a smaller import may end before it can be cut off
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,"
    "tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)


@pytest.fixture
def flights(tmp_path: Path) -> Path:
    """A file like the real one, smaller, with rows that are equal to each other and some without a value."""
    rows = [
        f"2013,1,{1 + n % 28},{'NA' if n % 50 == 0 else n % 2400},515,2,830,819,11,UA,{n % 9000},"
        f"N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z"
        for n in range(ROWS)
    ]
    file = tmp_path / "flights.csv"
    file.write_text("\n".join([HEADER, *rows]) + "\n")
    return file


def start(flights: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dispatcher.demo", "--file", str(flights), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_every_check_holds_at_small_size(flights: Path) -> None:
    with start(flights, "--jobs", "20") as demo:
        output, errors = demo.communicate(timeout=150)
    assert (demo.returncode, errors) == (0, ""), output + errors
    assert "kill -9 of the leader" in output
    assert f"{ROWS:,} of {ROWS:,}, 0 missing, 0 too many" in output
    assert "37 succeeded" in output
    assert f"12 months summed up in processes, {ROWS:,} flights in all" in output
    assert "\x1b" not in output


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_an_interrupt_in_the_middle_leaves_no_process_behind(flights: Path, tmp_path: Path) -> None:
    with start(flights, "--jobs", "5000") as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "beside it" in line:
                break
        replicas = [pid for pid in _children(demo.pid) if b"run" in _command(pid)]
        assert len(replicas) == 2
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and _command(pid) for pid in replicas):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_missing_data_set_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dispatcher.demo_flights.find_data_set", lambda: None)
    assert main([]) == 1
    assert capsys.readouterr().err == MISSING + "\n"


def test_the_witness_sees_a_limit_that_was_exceeded() -> None:
    runs = [Run(job, 1, 100, start, end) for job, start, end in [(1, 0.0, 2.0), (2, 1.0, 3.0), (3, 2.0, 4.0)]]
    assert most_at_once(runs) == 2  # where one ends another may start
    assert most_at_once([*runs, Run(4, 1, 100, 1.5, 1.6)]) == 3


def test_the_witness_lets_cut_off_runs_end_with_their_process_only() -> None:
    runs = [Run(1, 1, 100, 0.0, None), Run(1, 2, 200, 5.0, 6.0), Run(2, 1, 200, 5.5, None)]
    assert overlapping_attempts(runs) == [1]
    closed = close_cut_off(runs, pid=100, died=4.0)
    assert overlapping_attempts(closed) == []
    assert closed[2].end is None


def test_the_witness_reads_whole_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_text("start 7 1 100 1.5\nend 7 1 100 2.5\nstart 8 1 10")
    assert read_runs(file) == [Run(7, 1, 100, 1.5, 2.5)]
    assert read_runs(tmp_path / "none") == []


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.append(int(entry.name))
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
