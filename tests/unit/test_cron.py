"""When schedules are due, across daylight saving both ways, and what becomes of due times that were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.cron import MOST_AT_ONCE, Cron, catch_up
from dispatcher.errors import InvalidSchedule

BERLIN = "Europe/Berlin"
HOWE = "Australia/Lord_Howe"
SANTIAGO = "America/Santiago"


def times(expression: str, zone: str, start: str, count: int) -> list[str]:
    """Due times as UTC, `HH:MM` with the day."""
    cron = Cron.parse(expression, zone)
    return [f"{due:%d %H:%M}" for due in islice(cron.times(datetime.fromisoformat(start)), count)]


@pytest.mark.parametrize(
    ("expression", "zone", "start", "expected"),
    [
        ("*/15 * * * *", "UTC", "2026-01-01T00:00:00Z", ["01 00:15", "01 00:30", "01 00:45", "01 01:00"]),
        ("30 4 * * MON-FRI", BERLIN, "2026-01-02T12:00:00Z", ["05 03:30", "06 03:30"]),
        ("0 0 L * *", "UTC", "2026-02-01T00:00:00Z", ["28 00:00", "31 00:00"]),
        ("0 0 * * MON#2", "UTC", "2026-06-01T00:00:00Z", ["08 00:00", "13 00:00"]),
        # Forward: 02:00 to 03:00 is skipped on 29 March 2026; what is due in it runs once the clock has jumped.
        ("30 2 * * *", BERLIN, "2026-03-28T00:00:00Z", ["28 01:30", "29 01:00", "30 00:30"]),
        ("0 * * * *", BERLIN, "2026-03-29T00:00:00Z", ["29 01:00", "29 02:00", "29 03:00"]),
        ("*/30 * * * *", BERLIN, "2026-03-29T00:10:00Z", ["29 00:30", "29 01:00", "29 01:30"]),
        # Back: 02:00 to 03:00 comes twice on 25 October 2026; a fixed hour runs once, the first time.
        ("30 2 * * *", BERLIN, "2026-10-24T12:00:00Z", ["25 00:30", "26 01:30"]),
        ("30 2 * * *", BERLIN, "2026-10-25T00:45:00Z", ["26 01:30"]),
        ("30 2 * * *", BERLIN, "2026-10-25T01:15:00Z", ["26 01:30"]),
        ("0 * * * *", BERLIN, "2026-10-24T23:30:00Z", ["25 00:00", "25 01:00", "25 02:00"]),
        ("*/30 2 * * *", BERLIN, "2026-10-24T23:30:00Z", ["25 00:00", "25 00:30", "25 01:00", "25 01:30", "26 01:00"]),
        # By half an hour, back on 5 April and forward on 4 October 2026, from +11:00 to +10:30.
        ("0 */6 * * *", HOWE, "2026-04-04T13:50:00Z", ["04 19:30", "05 01:30", "05 07:30", "05 13:30"]),
        ("0 */6 * * *", HOWE, "2026-10-03T13:55:00Z", ["03 19:00", "04 01:00", "04 07:00", "04 13:00"]),
        ("*/30 0 * * *", HOWE, "2026-04-04T13:30:00Z", ["05 13:30", "05 14:00", "06 13:30"]),
        ("*/20 1 * * *", HOWE, "2026-04-04T14:00:00Z", ["04 14:20", "04 14:40", "04 15:10", "05 14:30"]),
        ("*/15 2 * * *", HOWE, "2026-10-03T13:55:00Z", ["03 15:30", "03 15:45", "04 15:00"]),
        ("30 2 * * *", HOWE, "2026-10-02T16:30:00Z", ["03 15:30", "04 15:30"]),
        ("0 */6 5 4 *", HOWE, "2025-04-10T00:00:00Z", ["04 13:00", "04 19:30", "05 01:30", "05 07:30"]),
        # At midnight: forward on 6 September, back on 5 April 2026.
        ("0 0 * * *", SANTIAGO, "2026-09-05T12:00:00Z", ["06 04:00", "07 03:00"]),
        ("30 0 * * *", SANTIAGO, "2026-09-05T12:00:00Z", ["06 04:00", "07 03:30"]),
        ("0 0 * * *", SANTIAGO, "2026-04-04T12:00:00Z", ["05 04:00", "06 04:00"]),
        ("30 23 * * *", SANTIAGO, "2026-04-04T12:00:00Z", ["05 02:30", "06 03:30"]),
        # By real time on that one day alone, which has no midnight, or has an hour twice.
        ("*/20 1 * * SUN", SANTIAGO, "2026-09-05T12:00:00Z", ["06 04:00", "06 04:20", "06 04:40", "13 04:00"]),
        ("0 */2 6 9 *", SANTIAGO, "2026-09-05T12:00:00Z", ["06 05:00", "06 07:00"]),
        (
            "*/30 2 25 10 *",
            BERLIN,
            "2025-12-01T00:00:00Z",
            ["25 00:00", "25 00:30", "25 01:00", "25 01:30", "25 00:00"],
        ),
        ("0 4 29 2 *", BERLIN, "2026-01-01T00:00:00Z", ["29 03:00", "29 03:00"]),
    ],
)
def test_due_times(expression: str, zone: str, start: str, expected: list[str]) -> None:
    assert times(expression, zone, start, len(expected)) == expected


BAD: list[Any] = ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8"]
BAD += [
    "*/0 * * * *",
    "5-1 * * * *",
    "a * * * *",
    "* * * FOO *",
    "@daily",
    "0 0 30 2 *",
    "0 0 30 FEB *",
    "* * L/2 * *",
    "* * 1,lw/1 * *",
    "*/10000 * * * *",
    "1" * 5000 + " * * * *",
    None,
    5,
]


@pytest.mark.parametrize("expression", BAD)
def test_what_is_no_cron_expression_is_refused_in_one_line(expression: Any) -> None:
    with pytest.raises(InvalidSchedule, match="cron expression") as caught:
        Cron.parse(expression, "UTC")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "zone", ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "localtime", "europe\0berlin", "x" * 300]
)
def test_zone_that_does_not_exist_is_refused(zone: str) -> None:
    with pytest.raises(InvalidSchedule, match="time zone"):
        Cron.parse("* * * * *", zone)


field = st.sampled_from(["*", "*/7", "*/20", "0", "30", "5,35", "10-12"])
hour = st.sampled_from(["*", "*/2", "2", "1-3", "0,2,3"])


@given(
    minute=field,
    hour=hour,
    zone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "UTC"]),
    start=st.datetimes(datetime(2017, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 - made aware below
)
def test_due_times_only_move_on(minute: str, hour: str, zone: str, start: datetime) -> None:
    """Each later than the one before, from wherever one begins, and each found again from just before it."""
    cron = Cron.parse(f"{minute} {hour} * * *", zone)
    begin = start.replace(tzinfo=UTC)
    found = list(islice(cron.times(begin), 60))
    assert found[0] > begin
    assert all(a < b for a, b in pairwise(found))
    for a, b in pairwise(found):
        assert cron.after(a) == b  # as the leader goes on, each time anew
    for due in found:
        assert due.astimezone(ZoneInfo(zone)).second == 0


SHIFTS = [  # forward and back, by an hour or half of one, at midnight and later
    (BERLIN, "2026-03-29T01:00Z"),
    (BERLIN, "2026-10-25T01:00Z"),
    (SANTIAGO, "2026-09-06T04:00Z"),
    (SANTIAGO, "2026-04-05T03:00Z"),
    ("America/Havana", "2026-03-08T05:00Z"),
    ("America/Havana", "2026-11-01T05:00Z"),
    (HOWE, "2026-10-03T15:30Z"),
    (HOWE, "2026-04-04T15:00Z"),
]


@given(
    fields=st.sampled_from(
        [(None, hours) for hours in (None, (0,), (1,), (2,), (1, 2, 3), (0, 2, 3), (22, 23))]
        + [(minutes, None) for minutes in ((0,), (30,), (0, 59), (10, 11))]
    ),
    day=st.integers(-1, 1),
    shift=st.sampled_from(SHIFTS),
    hours_before=st.integers(0, 30),
)
def test_stars_go_by_real_time(
    fields: tuple[tuple[int, ...] | None, tuple[int, ...] | None],
    day: int,
    shift: tuple[str, str],
    hours_before: int,
) -> None:
    """Due is every minute at which the clock on the wall shows what the expression says."""
    minutes, hours = fields
    zone, at = ZoneInfo(shift[0]), datetime.fromisoformat(shift[1])
    date = (at.astimezone(zone) + timedelta(days=day)).day
    lists = ["*" if of is None else ",".join(map(str, of)) for of in (minutes, hours)]
    cron = Cron.parse(f"{lists[0]} {lists[1]} {date} * *", shift[0])
    begin, end = at - timedelta(hours=hours_before), at + timedelta(hours=30)
    shown = [
        moment
        for minute in range(1, 1 + 60 * (hours_before + 30))
        if (wall := (moment := begin + timedelta(minutes=minute)).astimezone(zone)).day == date
        and (minutes is None or wall.minute in minutes)
        and (hours is None or wall.hour in hours)
    ]
    assert list(takewhile(lambda due: due <= end, cron.times(begin))) == shown


HOURLY = Cron.parse("0 * * * *", "UTC")
DUE = datetime(2026, 5, 1, 6, tzinfo=UTC)


def hours(*numbers: int) -> list[datetime]:
    return [DUE + timedelta(hours=number) for number in numbers]


@pytest.mark.parametrize("policy", ["skip", "one", "all"])
def test_what_is_due_just_now_is_fired_by_every_policy(policy: str) -> None:
    for late in (0, 1, 59):
        firing = catch_up(HOURLY, policy, DUE, DUE + timedelta(seconds=late))
        assert (firing.fires, firing.next_at) == ([DUE], DUE + timedelta(hours=1))


@pytest.mark.parametrize(("policy", "fires"), [("skip", []), ("one", hours(5)), ("all", hours(0, 1, 2, 3, 4, 5))])
def test_missed_due_times(policy: str, fires: list[datetime]) -> None:
    now = DUE + timedelta(hours=5, minutes=20)
    firing = catch_up(HOURLY, policy, DUE, now)
    assert (firing.fires, firing.next_at) == (fires, DUE + timedelta(hours=6))


def test_skip_still_fires_what_is_due_at_this_moment() -> None:
    firing = catch_up(HOURLY, "skip", DUE, DUE + timedelta(hours=5, seconds=3))
    assert firing.fires == hours(5)


def test_all_are_caught_up_bit_by_bit() -> None:
    minutely, now = Cron.parse("* * * * *", "UTC"), DUE + timedelta(minutes=2 * MOST_AT_ONCE + 10)
    due, fired = DUE, []
    for _ in range(3):
        firing = catch_up(minutely, "all", due, now)
        fired += firing.fires
        due = firing.next_at
    assert fired == [DUE + timedelta(minutes=number) for number in range(2 * MOST_AT_ONCE + 11)]
    assert due > now


def test_years_of_downtime_are_passed_over_at_once() -> None:
    minutely = Cron.parse("* * * * *", "UTC")
    now = DUE + timedelta(days=3650, seconds=10)
    assert catch_up(minutely, "one", DUE, now).fires == [now - timedelta(seconds=10)]


def test_clock_that_goes_back_fires_nothing_twice() -> None:
    """The next due time lies behind the one that is fired, whatever the clock says."""
    firing = catch_up(HOURLY, "one", DUE, DUE - timedelta(hours=3))
    assert firing.next_at == DUE + timedelta(hours=1)
