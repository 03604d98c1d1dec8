"""The protocol's model, checked by spin in every order of events: it holds, and without any one guard it does not."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("protocol.pml")
MEMORY_MB = 2000
OVERLAP, ANOTHERS, LOST = "!(dead[0])&&(place[0]==", "attempt==settling[r]", "calm<="
MISSING = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]

if MISSING and os.environ.get("DISPATCHER_TEST_TOOLS") != "required":
    pytest.skip(f"not installed: {', '.join(MISSING)} (Debian: apt-get install spin gcc)", allow_module_level=True)


def check(folder: Path, *defines: str) -> str:
    """What the search says; it ends at the first violation. Optimizing would take the compiler longer than it saves."""
    flags = [f"-D{name}" for name in defines]
    subprocess.run(["spin", *flags, "-a", MODEL], cwd=folder, check=True, capture_output=True, timeout=60)
    compiled = ["gcc", "-O0", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={MEMORY_MB}"]
    subprocess.run([*compiled, "-o", "pan", "pan.c"], cwd=folder, check=True, timeout=200)
    result = subprocess.run(["./pan", "-m200000"], cwd=folder, check=True, capture_output=True, text=True, timeout=400)
    return result.stdout


def holds(said: str) -> bool:
    """True if every state was seen, and no assertion fails in any."""
    return "errors: 0" in said and "Search not completed" not in said and "search depth too small" not in said


@pytest.mark.timeout(700)
def test_no_attempt_overlaps_no_outcome_is_anothers_and_no_job_is_lost(tmp_path: Path) -> None:
    assert holds(check(tmp_path, "PAIR", "FAULTS=2"))


@pytest.mark.timeout(700)
def test_so_it_is_with_a_third_replica_and_with_a_graceful_stop_and_every_way_is_taken(tmp_path: Path) -> None:
    """A model in which nothing could happen would be safe, too."""
    reached = set[str]()
    for defines in (["FAULTS=1"], ["PAIR", "FAULTS=1", "STOPS=1"]):
        said = check(tmp_path, "REACHED", *defines)
        assert holds(said)
        reached |= set(re.findall("^reached: (.+)$", said, re.MULTILINE))
    assert reached == set(re.findall(r'reached\("(.+?)"\)', MODEL.read_text()))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("guard", "violated", "bounds"),
    [
        ("EXPIRY", LOST, ["FAULTS=2"]),
        ("SETTLE", ANOTHERS, ["FAULTS=2"]),
        ("RESCUE", OVERLAP, ["FAULTS=2"]),
        ("INCARNATION", OVERLAP, ["FAULTS=3"]),
        ("TRUST", OVERLAP, ["FAULTS=2"]),
        ("OWN", LOST, ["FAULTS=2"]),
        ("ROWLESS", LOST, ["FAULTS=1", "STOPS=1"]),
        ("DISARM", OVERLAP, ["FAULTS=2"]),
        ("STOP", OVERLAP, ["FAULTS=0", "STOPS=1"]),
    ],
)
def test_without_a_guard_spin_finds_the_counter_example(
    tmp_path: Path, guard: str, violated: str, bounds: list[str]
) -> None:
    said = check(tmp_path, "PAIR", f"BROKEN_{guard}", *bounds)
    assert "errors: 1" in said
    assert violated in next(line for line in said.splitlines() if "assertion violated" in line)
