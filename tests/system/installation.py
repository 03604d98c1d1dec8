"""What an administrator would put on a host: the wheel in a virtual environment, units, settings."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.system.machine import Machine

ROOT = Path(__file__).parents[2]
HOME = "/opt/dispatcher"
DEPENDENCIES = "/opt/dependencies"
PYTHON = "/opt/python"
UNITS = ("dispatcher@a", "dispatcher@b")
PORTS = {"dispatcher@a": 9464, "dispatcher@b": 9465}
API = "dispatcher-api"
EXTRAS = ("api", "binary")  # ours, and psycopg's; no other of these has one of that name


def build_wheel(folder: Path) -> Path:
    """Builds the wheel from a copy of the tree, where no earlier build has left anything."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


def lay_out(root: Path, *, wheel: Path) -> None:
    """Puts into `root` what the machine could get only over a network, and lets nothing wait for one."""
    system = root / "etc/systemd/system"
    system.mkdir(parents=True)
    for name in ("systemd-networkd-wait-online", "NetworkManager-wait-online"):
        (system / f"{name}.service").symlink_to("/dev/null")
    (root / "opt").mkdir()
    shutil.copy(wheel, root / "opt")
    copy_dependencies(root / DEPENDENCIES.lstrip("/"))


def copy_dependencies(folder: Path) -> None:
    """Copies what the distribution requires from where the tests run: no index need be reachable."""
    wanted, seen = ["pg-dispatcher"], set()
    while wanted:
        distribution = metadata.distribution(wanted.pop())
        for text in distribution.requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS)
            if applies and requirement.name not in seen:
                seen.add(requirement.name)
                wanted.append(requirement.name)
        if distribution.name != "pg-dispatcher":
            for file in distribution.files or []:
                if ".." not in file.parts and file.suffix != ".pyc":
                    target = folder / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(str(file.locate()), target)


def python() -> tuple[str, dict[str, Path], dict[str, str]]:
    """The interpreter as the machine sees it, what is bound for it, and the environment that it needs."""
    base, name = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    if base == Path("/usr"):
        return f"/usr/bin/{name}", {}, {}
    # It may lie below root's home, which the unit does not see, and look there for a library of its own.
    return f"{PYTHON}/bin/{name}", {PYTHON: base}, {"LD_LIBRARY_PATH": f"{PYTHON}/lib"}


def install(machine: Machine, *, wheel: Path) -> None:
    """Does what docs/operations.md tells an administrator to do, without a network."""
    interpreter, _, _ = python()
    machine.run(interpreter, "-m", "venv", HOME)
    packages = f"{HOME}/lib/{Path(interpreter).name}/site-packages"
    machine.run("cp", "-a", f"{DEPENDENCIES}/.", packages)
    machine.run(f"{HOME}/bin/pip", "install", "--quiet", "--no-index", f"/opt/{wheel.name}")
    [steps] = re.findall(r"```sh\n(units=.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    machine.run("sh", "-euc", steps)


class Host:
    """The machine, with two replicas installed: what an administrator sees of them."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run = machine.run

    def show(self, unit: str) -> dict[str, str]:
        names = "ActiveState,MainPID,NRestarts,Result,StatusText,ExecMainStatus,InvocationID"
        output = self.run("systemctl", "show", f"--property={names}", unit)
        return dict(line.split("=", 1) for line in output.splitlines())

    def ask(self, unit: str, path: str) -> tuple[int, str]:
        """GET from the unit's port, inside the machine's network."""
        program = (
            "import sys, urllib.request as u, urllib.error as e\n"
            "try: r = u.urlopen(sys.argv[1], timeout=5)\n"
            "except e.HTTPError as x: r = x\n"
            "print(r.status); print(r.read().decode())"
        )
        url = f"http://127.0.0.1:{(PORTS | {API: 8080})[unit]}{path}"
        status, _, body = self.run(f"{HOME}/bin/python", "-c", program, url).partition("\n")
        return int(status), body

    def metric(self, unit: str, name: str) -> float | None:
        _, body = self.ask(unit, "/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", body, re.MULTILINE)
        return float(found[1]) if found else None

    def leads(self, unit: str) -> bool:
        return self.show(unit)["StatusText"].startswith("leader")

    def leader(self) -> str | None:
        return next(filter(self.leads, UNITS), None)

    def journal(self) -> str:
        return self.run("journalctl", "--output=short-precise", "--unit=dispatcher*", check=False)
