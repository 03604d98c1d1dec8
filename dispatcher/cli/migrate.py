"""dispatcher migrate."""

from __future__ import annotations

import click

from dispatcher import migrate
from dispatcher.cli.base import common, common_options, fail, note
from dispatcher.cli.output import print_json
from dispatcher.cli.session import dsn
from dispatcher.sql import migrations, statement


@click.command("migrate")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 and name what is missing.")
@click.option("--sql", is_flag=True, help="Print the SQL of all migrations, to be applied by other means.")
@common_options
def command(check: bool, sql: bool) -> None:
    """Bring the database's schema up to date. Any number may run at once; one does it, the others wait."""
    if check and sql:
        raise click.UsageError("--check and --sql exclude each other")
    if sql:
        _print_sql()
    elif check:
        _check()
    else:
        applied = migrate.migrate(dsn())
        if common().json:
            print_json({"applied": applied})
        for name in applied:
            note(f"applied {name}")
        if not applied:
            note("the schema is up to date")


def _print_sql() -> None:
    steps = [{"version": version, "name": name, "sql": text} for version, name, text in migrations()]
    if common().json:
        print_json(steps)
        return
    click.echo(_script())


def _script() -> str:
    """All migrations as one script for psql, which records them as `dispatcher migrate` does."""
    first = (
        "lock_migrations",
        "make_schema",
        "become_owner",
        "make_migration_tables",
        "limit_lock_wait",
        "lock_tables",
    )
    parts = ["begin;", *(_text(name).replace("%(wait_s)s", str(migrate.LONGEST_WAIT_S)) for name in first)]
    for version, name, text in migrations():
        record = _text("record_migration").replace("%(version)s", str(version)).replace("%(name)s", f"'{name}'")
        parts += [text.strip(), record]
    parts.append(_text("demand_migrations").replace("%(version)s", str(migrate.PREVIOUS)))
    return "\n\n".join([*parts, _text("apply_access"), "commit;"])


def _text(name: str) -> str:
    text: str = statement(name).decode().strip()
    return f"{text};"


def _check() -> None:
    missing = migrate.missing(dsn())
    if common().json:
        print_json({"missing": missing})
    if missing:
        fail(f"the database lacks {', '.join(missing)}: run `dispatcher migrate`")
    note("the schema is up to date")
