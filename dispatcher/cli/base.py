"""What all commands share: the common options, lazy loading, errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn, TypeVar

import click

from dispatcher.conceal import conceal_argument
from dispatcher.errors import DatabaseUnavailable, DispatcherError

F = TypeVar("F", bound=Callable[..., Any])
NO_DSN = " (no database is named: set DISPATCHER_DSN, or give --dsn)"
INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended


@dataclass(slots=True)
class Common:
    """The options that every command has, before or after its name."""

    dsn: str | None = None
    config: str | None = None
    json: bool = False
    no_dsn: bool = False
    """Nothing says where the database is, so that libpq goes by its own defaults."""


def common() -> Common:
    """Those of the running command."""
    return click.get_current_context().find_root().ensure_object(Common)


def common_options(function: F) -> F:
    """Adds --dsn, --config and --json to a command."""
    for name, help_text in (
        ("json", "Print JSON for programs."),
        ("config", "A TOML file with settings."),
        (
            "dsn",
            "PostgreSQL. Others see it in the process list for a moment: if it has a password, set DISPATCHER_DSN.",
        ),
    ):
        is_flag = name == "json"
        shape: dict[str, Any] = {"is_flag": True} if is_flag else {"metavar": "FILE" if name == "config" else "DSN"}
        function = click.option(f"--{name}", help=help_text, expose_value=False, callback=_keep, **shape)(function)
    return function


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and parameter.name == "dsn":
        conceal_argument("--dsn", value)
    if value and parameter.name:
        setattr(context.find_root().ensure_object(Common), parameter.name, value)


class LazyGroup(click.Group):
    """A group whose commands are imported when used; turns errors into one line and an exit status."""

    def __init__(self, *args: Any, commands_by_name: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = commands_by_name

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """In the order in which one meets them."""
        return list(self._modules)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Imports it."""
        if name not in self._modules:
            return None
        command = import_module(self._modules[name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._modules.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Never a traceback: what goes wrong is one line on standard error."""
        try:
            return super().invoke(ctx)
        except DispatcherError as exc:
            lost = isinstance(exc, DatabaseUnavailable) and ctx.find_root().ensure_object(Common).no_dsn
            raise failure(f"{exc}{NO_DSN if lost else ''}") from exc
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as exc:
            raise _usage(exc) from exc
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click prints the first, and ends quietly where a pipe was closed
        except OSError as exc:  # of standard output, say, on a full disk
            raise failure(": ".join(filter(None, (exc.filename, exc.strerror or str(exc))))) from exc
        except Exception as exc:
            if sys.flags.dev_mode:
                raise
            message = f"unexpected {type(exc).__name__}: {exc} (python -X dev -m dispatcher shows where)"
            raise failure(message) from exc


class _Failure(click.ClickException):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc] # click reads it from the instance, too


def failure(message: str, status: int = 1) -> click.ClickException:
    """An error of one line, safe to print, that ends the command with `status`."""
    return _Failure(printable(" ".join(message.split())), status)


def _usage(exc: click.UsageError) -> click.ClickException:
    """A mistake in the command line: one line as well, status 2."""
    command = exc.ctx.command_path if exc.ctx is not None else "dispatcher"
    return failure(f"{exc.format_message()} ({command} --help says more)", exc.exit_code)


def fail(message: str) -> NoReturn:
    """Ends the command with status 1 and one line on standard error."""
    raise failure(message)


def note(message: str) -> None:
    """A message for a person, on standard error."""
    click.echo(printable(message), err=True)


def printable(text: str) -> str:
    """`text` with control characters and half surrogates as escapes: no job's text may command a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
