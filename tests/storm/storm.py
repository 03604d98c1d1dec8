"""One storm from its beginning to the verdict."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg import conninfo

from dispatcher import migrate
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.heart import HANG_S
from dispatcher.queries import replicas
from tests import servers
from tests.events import read_events
from tests.storm import jobs, rows
from tests.storm.checker import check
from tests.storm.faults import Faults
from tests.storm.history import FINAL, History
from tests.storm.load import Load
from tests.storm.places import Places
from tests.storm.plan import ORPHAN_AFTER_S, PLACES, Fault, plan
from tests.system.replicas import until, within

log = logging.getLogger("storm")

OPTIONS = {"max_connections": "70", "shared_buffers": "64MB", "log_min_messages": "warning"}
DATABASE = "storm"
START_S = 60.0  # for the first replica: three interpreters, on a machine that may be busy
CALM_S = 60.0  # by when everything must have ended once the faults are over
CALM_LOOK_S = 0.1
STOP_S = 20.0
SETTLED_S = 2 * ORPHAN_AFTER_S  # by then somebody leads again after the last fault, and has made good what was due
GRACEFUL = (0, -signal.SIGTERM)  # the signal itself, where it came before the replica had started
# By itself: it found no server as it started, or lost it for too long; by the fence; by a fault or another replica.
BROKEN = (*GRACEFUL, 1, -signal.SIGALRM, -signal.SIGKILL)
FEWEST_PER_S = 2.0  # jobs that are enqueued and attempts that start, or the storm has shown nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a storm came to."""

    figures: dict[str, object]
    breaches: list[str]


def run(seed: int, duration_s: float, folder: Path) -> Report:
    """Faults for so many seconds, then calm until all jobs have ended, then the verdict."""
    faults = plan(seed, duration_s)
    log.info("%d faults within %.0f s on %d replicas; then all jobs have to end", len(faults), duration_s, PLACES)
    with EmbeddedPostgres(bindir=servers.binaries(), options=OPTIONS, tcp=True) as server:
        servers.add_role(server)
        dsn = servers.role_dsn(server, servers.add_database(server, name=DATABASE))
        migrate.migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as conn:
            rows.prepare(conn)
        tcp = conninfo.make_conninfo(server.tcp_dsn, user=servers.ROLE, password=servers.PASSWORD, dbname=DATABASE)
        with _places(tcp, folder) as places:
            until(lambda: _published(dsn), "the types are known", timeout_s=START_S)
            load = Load(dsn, seed)
            load.start()
            maker = Faults(server=server, dsn=dsn, places=places, folder=folder)
            try:
                late_s = _weather(faults, duration_s, maker)
            finally:
                maker.end_all()
                load.stop()
            calm_s = _until_all_have_ended(dsn)
            # A heart that waits for a network that is half open is ended HANG_S later, and its replica started anew.
            came_back = within(HANG_S + START_S, lambda: _all_are_there(dsn), every_s=CALM_LOOK_S)
            statuses = places.terminate(STOP_S)
            history = _history(dsn, folder, load)
            figures = _figures(history, faults, places, dsn)
            figures |= {"late_s": round(late_s, 1), "calm_s": round(calm_s, 1), "refused": dict(load.refused)}
            breaches = check(history)
            if not came_back:
                breaches.append("not every replica came back after the last fault")
            breaches += [
                f"a replica ended with status {status} at the end" for status in statuses if status not in GRACEFUL
            ]
            breaches += [f"a replica ended with status {status}" for status in places.ended() if status not in BROKEN]
            breaches += list(_strange_lines(places.logs()))
            breaches += [
                f"a command left a traceback: {file}" for file in maker.logs() if "Traceback" in file.read_text()
            ]
            breaches += list(_too_little(history, duration_s))
        if breaches:
            _keep(folder, history)
    return Report(figures, breaches)


@contextmanager
def _places(dsn: str, folder: Path) -> Iterator[Places]:
    places = Places(dsn, folder)
    try:
        yield places
    finally:
        places.close()


def _published(dsn: str) -> bool:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return bool(conn.execute("select 1 from dispatcher.type where name = 'callback'").fetchall())


def _all_are_there(dsn: str) -> bool:
    """Whether each place has a replica whose session stands."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return sum(replica.present for replica in replicas.list_replicas(conn, 1)) == PLACES


def _weather(faults: Sequence[Fault], duration_s: float, maker: Faults) -> float:
    """Makes the faults; by how much the latest of them was late, as a server that recovers holds up the others."""
    began, late_s = time.monotonic(), 0.0
    steps = sorted(
        [(fault.at_s, 1, fault) for fault in faults] + [(fault.until_s, 0, fault) for fault in faults if fault.lasts_s],
        key=lambda step: step[:2],
    )
    for at_s, begins, fault in steps:
        time.sleep(max(0.0, began + at_s - time.monotonic()))  # the plan is by time
        late_s = max(late_s, time.monotonic() - began - at_s)
        if begins:
            log.info("%s", fault)
            maker.begin(fault)
        else:
            maker.end(fault)
    time.sleep(max(0.0, began + duration_s - time.monotonic()))
    return late_s


def _until_all_have_ended(dsn: str) -> float:
    """How long that took; after CALM_S the checker will tell what has not."""
    began = time.monotonic()
    query = "select 1 from dispatcher.job where state <> all(%s) limit 1"
    with psycopg.connect(dsn, autocommit=True) as conn:
        within(CALM_S + ORPHAN_AFTER_S, lambda: not conn.execute(query, [list(FINAL)]).fetchall(), every_s=CALM_LOOK_S)
    return time.monotonic() - began


def _history(dsn: str, folder: Path, load: Load) -> History:
    added, removed = load.scheduled
    due = rows.every_minute(added, removed - timedelta(seconds=SETTLED_S))
    with psycopg.connect(dsn, autocommit=True) as conn:
        return History(
            events=read_events(folder / "events"),
            rows=rows.read_rows(conn),
            changes=rows.read_changes(conn),
            limits=jobs.LIMITS,
            enqueued=load.enqueued,
            canceled=frozenset(load.canceled),
            canceled_at=load.canceled_at,
            retried=dict(+load.retried),
            clock_offset_s=time.time() - time.monotonic(),
            effects=rows.read_effects(conn),
            parts=rows.read_parts(conn),
            batches=rows.read_batches(conn),
            due={"every-all": due, "every-one": due[-1:]},
            timeouts_s={"late": jobs.LATE_S},
        )


def _figures(history: History, faults: Sequence[Fault], places: Places, dsn: str) -> dict[str, object]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        [(terms,)] = conn.execute("select term from dispatcher.lease where name = 'default'").fetchall()
    starts = sorted(attempt.start for attempts in history.attempts.values() for attempt in attempts)
    errors = Counter(error["kind"] for row in history.rows.values() for error in row.errors)
    return {
        "jobs": len(history.rows),
        "attempts": len(starts),
        "states": dict(Counter(row.state for row in history.rows.values()).most_common()),
        "errors": dict(errors.most_common()),
        "faults": len(faults),
        "kinds": dict(Counter(fault.kind for fault in faults).most_common()),
        "terms": terms,
        "most_at_once": _most_at_once(history),
        "longest_time_without_a_start_s": round(max(two - one for one, two in itertools.pairwise(starts)), 1),
        "replicas_ended": dict(places.statuses().most_common()),
    }


def _most_at_once(history: History) -> dict[str, int]:
    """Of each type with a limit, and of all: a limit that nothing came up to has not been put to the test."""
    starts = [(change.number, 1, history.type_of(change.job)) for change in history.claims]
    ends = [(change.number, -1, history.type_of(change.job)) for change in history.ends.values()]
    running, most = Counter[str](), Counter[str]()
    for _, step, type in sorted(starts + ends):
        for key in ("all", type) if type in history.limits.types else ("all",):
            running[key] += step
            most[key] = max(most[key], running[key])
    return dict(most)


def _too_little(history: History, duration_s: float) -> Iterator[str]:
    """A storm in which hardly anything was done breaks no promise, and proves none."""
    seen = {"jobs were enqueued": len(history.enqueued), "attempts were started": len(history.claims)}
    for what, count in seen.items():
        if count < FEWEST_PER_S * duration_s:
            yield f"too little to tell: {count} {what} in {duration_s:.0f} s"


def _strange_lines(logs: list[Path]) -> Iterator[str]:
    """What a replica should never write: a line that is no event, as of a traceback, or an exception with its trace."""
    seen: Counter[str] = Counter()
    for file in logs:
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Error: "):  # what ended it, for a person: the server was away as it started
                continue
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line, "level": "raw"}
            if entry["level"] in ("raw", "critical") or "exception" in entry or "trace" in entry:
                seen[f"{entry['event'][:200]} {str(entry.get('exception', ''))[-300:]}"] += 1
    for line, times in seen.items():
        yield f"a replica wrote, {times} times: {line}"


def _keep(folder: Path, history: History) -> None:
    """What is needed to look into a breach once the database is gone."""
    with (folder / "rows").open("w") as out:
        for row in history.rows.values():
            out.write(json.dumps(dataclasses.asdict(row), default=str) + "\n")
    with (folder / "changes").open("w") as out:
        for change in history.changes:
            out.write(json.dumps(dataclasses.asdict(change), default=str) + "\n")
