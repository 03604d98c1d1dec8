"""The project's SQL: numbered migrations, forward only, and one statement a file in queries/."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> bytes:
    """The text of queries/`name`.sql, as bytes so that psycopg takes it as a trusted literal."""
    return files(__name__).joinpath("queries", f"{name}.sql").read_bytes()


def migrations() -> list[tuple[int, str, str]]:
    """All migrations in order: (version, name, text)."""
    found = []
    for entry in files(__name__).joinpath("migrations").iterdir():
        if entry.name.endswith(".sql"):
            version, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append((int(version), name, entry.read_text(encoding="utf-8")))
    return sorted(found)
