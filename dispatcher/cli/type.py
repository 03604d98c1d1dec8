"""dispatcher type: list, stats, pause, resume, limit."""

from __future__ import annotations

from typing import Any

import click

from dispatcher.cli.base import common, common_options
from dispatcher.cli.output import age, as_dict, duration, print_json, print_table
from dispatcher.cli.session import client
from dispatcher.queries.fleet import TypeInfo
from dispatcher.queries.stats import SPANS_S, Quantiles, TypeStats, WindowStats
from dispatcher.rate import format_rate, parse_rate

TENANTS_SHOWN = 3  # with limits of their own, in the table: --json has all


@click.group("type")
def command() -> None:
    """The types of jobs that are known; their limits, rates and pauses."""


@command.command("list")
@common_options
def list_types() -> None:
    """List the types that replicas have published, with what holds for them.

    What an operator changed is marked with a star; the rest is as the code and the replicas' settings say.
    """
    with client() as db:
        types = db.types()
    if common().json:
        print_json([as_dict(one) for one in types])
        return
    head = (
        "TYPE",
        "POOL",
        "LIMIT",
        "TENANT",
        "RATE",
        "PAUSED",
        "TIMEOUT",
        "ATTEMPTS",
        "SCHEMA",
        "PUBLISHED",
        "DESCRIPTION",
    )
    print_table(head, [_row(one) for one in types])


@command.command()
@click.option("--window", type=click.Choice(list(SPANS_S)), default="minute", show_default=True, help="The last one.")
@click.option("--tenant", metavar="NAME", help="Only jobs of this tenant.")
@common_options
def stats(window: str, tenant: str | None) -> None:
    """Show how many jobs of each type ended, and how long they ran and had waited.

    Durations are of half, 95 and 99 of a hundred tries. With --json: all windows, in seconds.
    """
    with client() as db:
        types = db.stats(tenant)
    if common().json:
        print_json([as_dict(one) for one in types])
        return
    head = ("TYPE", "FINISHED", "A SECOND", "SUCCEEDED", "PARTIAL", "FAILED", "CANCELED", "RETRIED")
    rows = [_stats_row(one, getattr(one, window)) for one in types]
    print_table((*head, "RAN 50/95/99 %", "WAITED 50/95/99 %"), rows)


@command.command()
@click.argument("type")
@common_options
def pause(type: str) -> None:
    """Let no job of TYPE start any more; those that run go on."""
    with client() as db:
        changed = db.pause(type)
    _say(type, "paused", changed)


@command.command()
@click.argument("type")
@common_options
def resume(type: str) -> None:
    """Let jobs of TYPE start again."""
    with client() as db:
        changed = db.resume(type)
    _say(type, "resumed" if changed else "not paused", changed)


class OrNone(click.ParamType[Any]):
    """A whole number of one or more, or the word none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word none is None for the database, and this the sign that the option was given."""
        if value == "none" or isinstance(value, int):
            return value
        if not value.isdecimal() or len(value) > 10 or not 1 <= int(value) < 2**31:
            self.fail(f"{value!r:.100} is no whole number of 1 or more, nor none; to stop a type, pause it", param, ctx)
        return int(value)


class Rate(click.ParamType[Any]):
    """A rate, or the word none."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As parse_rate."""
        if value == "none" or isinstance(value, float):
            return value
        try:
            return parse_rate(float(value) if value.replace(".", "", 1).isdecimal() else value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@command.command("limit")
@click.argument("type")
@click.option("--limit", type=OrNone(), metavar="N", help="Jobs that run at once.")
@click.option("--tenant-limit", type=OrNone(), metavar="N", help="Jobs of each tenant that run at once.")
@click.option("--rate", type=Rate(), metavar="RATE", help="Starts a second, or 100/min.")
@click.option("--burst", type=OrNone(), metavar="N", help="Starts at once, after a pause.")
@click.option("--tenant", metavar="NAME", help="With --limit: of this tenant alone.")
@common_options
def set_limit(type: str, tenant: str | None, **given: Any) -> None:
    """Change limits of TYPE at run time; `none` leaves one to the code again."""
    changes = {name: None if value == "none" else value for name, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError("give at least one of --limit, --tenant-limit, --rate, --burst")
    with client() as db:
        db.set_limit(type, tenant=tenant, **changes)
        [info] = [one for one in db.types() if one.name == type]
    if common().json:
        print_json(as_dict(info))
        return
    limits = [
        f"limit {_count(info.limit)}",
        f"of each tenant {_count(info.tenant_limit)}",
        f"rate {_rate(info) or 'any'}",
    ]
    limits += [f"of tenant {name} {count}" for name, count in info.tenant_limits.items()]
    click.echo(f"{type}: {', '.join(limits)}")


def _say(type: str, word: str, changed: bool) -> None:
    if common().json:
        print_json({"type": type, "changed": changed})
    else:
        click.echo(word if changed or word == "not paused" else f"already {word}")


def _count(limit: int | None) -> str:
    return "none" if limit is None else str(limit)


def _marked(text: Any, origin: str | None) -> str | None:
    return None if text is None else f"{text}*" if origin == "database" else str(text)


def _rate(info: TypeInfo) -> str | None:
    return None if info.rate is None else f"{format_rate(info.rate)}, burst {info.burst}"


def _marked_rate(info: TypeInfo) -> str | None:
    if info.rate is None:
        return None
    rate, burst = _marked(format_rate(info.rate), info.rate_from), _marked(info.burst, info.burst_from)
    return f"{rate}, burst {burst}"


def _tenant_limits(info: TypeInfo) -> str | None:
    own = [f"{name} {count}*" for name, count in sorted(info.tenant_limits.items())]
    if len(own) > TENANTS_SHOWN:
        own[TENANTS_SHOWN:] = [f"{len(own) - TENANTS_SHOWN} more*"]
    return ", ".join(filter(None, (_marked(info.tenant_limit, info.tenant_limit_from), *own))) or None


def _stats_row(t: TypeStats, w: WindowStats) -> tuple[Any, ...]:
    rate = float(f"{w.rate:.3g}")
    counts = (w.succeeded, w.partial, w.failed, w.canceled, w.retried)
    return (t.type, w.finished, rate, *counts, _quantiles(w.duration), _quantiles(w.wait))


def _quantiles(q: Quantiles | None) -> str | None:
    return None if q is None else " / ".join(_short(seconds) for seconds in (q.p50, q.p95, q.p99))


def _short(seconds: float) -> str:
    if seconds >= 1:
        return duration(seconds)
    return f"{seconds * 1000:.0f}ms" if seconds >= 0.01 else f"{seconds * 1000:.1f}ms"


def _row(t: TypeInfo) -> tuple[Any, ...]:
    paused = None if t.paused_at is None else f"{age(t.paused_at)}, by {t.paused_by}"
    return (
        t.name,
        t.pool,
        _marked(t.limit, t.limit_from),
        _tenant_limits(t),
        _marked_rate(t),
        paused,
        t.timeout,
        t.max_attempts,
        t.payload_schema is not None,
        t.published_at,
        t.description,
    )
