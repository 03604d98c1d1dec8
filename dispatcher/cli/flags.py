"""Flags for the settings, made from their definitions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from dispatcher.settings import Settings, format_duration

F = TypeVar("F", bound=Callable[..., Any])
_COMMON = {"dsn"}  # every command has it
_LISTS = {"limits", "executors"}


def settings_flags(function: F) -> F:
    """Adds a flag for each setting. Values are texts: the settings judge them, wherever they come from."""
    for name, field in reversed(Settings.model_fields.items()):
        if name in _COMMON:
            continue
        default = field.get_default(call_default_factory=True)
        shown = format_duration(default) if isinstance(default, timedelta) else default
        text = f"{field.description}" + (f"  [default: {shown}]" if shown or shown == 0 else "")
        several: dict[str, Any] = {"multiple": True, "callback": _join} if name in _LISTS else {}
        function = click.option(f"--{name.replace('_', '-')}", metavar=_metavar(name), help=text, **several)(function)
    return function


def _metavar(name: str) -> str:
    return {"limits": "TYPE=N,...", "executors": "MODULE,..."}.get(name, "VALUE")


def _join(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    return ",".join(values) or None
