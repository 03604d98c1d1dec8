"""The PostgreSQL servers that tests run on, and databases in them."""

import os
import secrets
import subprocess
from pathlib import Path

import psycopg
from psycopg import conninfo, sql

from dispatcher.embedded import EmbeddedPostgres, EmbeddedPostgresError
from dispatcher.embedded_binaries import installed_binaries, wheel_binaries

# Tests connect as an ordinary role that owns its database: nothing in the system may need a superuser.
ROLE = "app"
PASSWORD = "app"  # only asked for on TCP, on servers that live as long as a test

# The database that tests clone.
MIGRATED = "migrated"

# Room for many replicas at once; small buffers, since several servers may run side by side.
OPTIONS = {"max_connections": "200", "shared_buffers": "32MB", "log_min_messages": "warning"}


def binaries() -> Path | None:
    """Return the server DISPATCHER_TEST_POSTGRES asks for: "wheel", "installed" or a folder; None for any."""
    match os.environ.get("DISPATCHER_TEST_POSTGRES", ""):
        case "":
            return None
        case "wheel":
            bindir = wheel_binaries()
        case "installed":
            bindir = next(iter(installed_binaries()), None)
        case folder:
            bindir = Path(folder)
    if bindir is None:
        raise EmbeddedPostgresError("the PostgreSQL of DISPATCHER_TEST_POSTGRES is not there: try make venv-wheel")
    return bindir


def copy_of(pristine: Path, name: str, *, durable: bool = True, tcp: bool = False) -> EmbeddedPostgres:
    """Return a server, not yet started, on a copy of a stopped server's data."""
    data = pristine.with_name(name)
    # Not shutil, which would not keep the owner that PostgreSQL insists on.
    subprocess.run(["cp", "-a", pristine, data], check=True)
    return EmbeddedPostgres(data, bindir=binaries(), options=OPTIONS, durable=durable, tcp=tcp)


def add_role(server: EmbeddedPostgres) -> None:
    """Make the role that tests connect as."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"create role {ROLE} login nosuperuser password '{PASSWORD}'")


def add_database(server: EmbeddedPostgres, *, template: str = "template1", name: str = "") -> str:
    """Make a database from a template and return its name."""
    name = name or f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        statement = "create database {} owner {} template {}"
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, (name, ROLE, template))))
    return name


def drop_database(server: EmbeddedPostgres, name: str) -> None:
    """Drop a database whatever is still connected to it."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def role_dsn(server: EmbeddedPostgres, name: str) -> str:
    """Connect the tests' role to a database by the unix socket."""
    return conninfo.make_conninfo(server.dsn, user=ROLE, dbname=name)
