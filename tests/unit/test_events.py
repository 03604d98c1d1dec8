"""The log by which tests judge what ran: a broken line would be a wrong verdict."""

import subprocess
import sys
from pathlib import Path

from tests.events import read_events

ROOT = Path(__file__).parents[2]
ENOUGH_BYTES = 1_000_000  # 250 pages: lines of their natural length were seen cut off ten times in as many
WRITER = """
import itertools, sys
from pathlib import Path
from types import SimpleNamespace
from tests.events import append_event
for n in itertools.count():
    append_event(Path(sys.argv[1]), SimpleNamespace(id=n, attempt=1), "start")
"""


def test_event_is_whole_while_it_is_written_and_when_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.touch()
    with (
        path.open("rb", buffering=0) as file,
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT) as writer,
    ):
        size, cut_off = 0, []
        while size < ENOUGH_BYTES and writer.poll() is None:
            if tail := file.read():
                size += len(tail)
                if not tail.endswith(b"\n"):
                    cut_off.append(tail)
        writer.kill()
    assert not cut_off
    events = read_events(path)
    assert [event.job for event in events] == list(range(len(events)))
