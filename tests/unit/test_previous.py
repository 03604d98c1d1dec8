"""What is kept of the previous release."""

import zipfile

from dispatcher.sql import migrations

from dispatcher import migrate
from tests.system.previous import wheel

FOLDER = "dispatcher/sql/migrations/"


def test_released_migrations_were_never_changed_and_the_version_that_is_demanded_is_theirs() -> None:
    with zipfile.ZipFile(wheel()) as archive:
        released = {
            name.removeprefix(FOLDER): archive.read(name).decode()
            for name in archive.namelist()
            if name.startswith(FOLDER) and name.endswith(".sql")
        }
    ours = {f"{version:04d}_{name}.sql": text for version, name, text in migrations()}
    assert {name: ours[name] for name in released} == released
    assert len(released) == migrate.PREVIOUS
