"""The command `dispatcher`: each command's module is imported when it is asked for: a quick start."""

from __future__ import annotations

import click

from dispatcher.cli.base import LazyGroup, common_options

COMMANDS = {
    "migrate": ("dispatcher.cli.migrate", "Bring the database's schema up to date."),
    "run": ("dispatcher.cli.run", "Run a replica: lead, or stand by."),
    "enqueue": ("dispatcher.cli.enqueue", "Enqueue a job, or one for each line of a file."),
    "job": ("dispatcher.cli.job", "Look at jobs, cancel them, run them again, wait for them."),
    "batch": ("dispatcher.cli.batch", "Look at batches."),
    "type": ("dispatcher.cli.type", "The types of jobs that are known."),
    "schedule": ("dispatcher.cli.schedule", "Jobs by the calendar."),
    "leader": ("dispatcher.cli.leader", "Who leads; make it resign."),
    "replica": ("dispatcher.cli.replica", "The daemons."),
    "api": ("dispatcher.cli.api", "Serve the HTTP API."),
    "token": ("dispatcher.cli.token", "Who may use the HTTP API."),
    "dev": ("dispatcher.cli.dev", "A PostgreSQL and a replica of your own, until Ctrl-C."),
    "config": ("dispatcher.cli.config", "All settings, and where each comes from."),
    "version": ("dispatcher.cli.version", "The version."),
}


@click.group(
    cls=LazyGroup,
    commands_by_name=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Data goes to standard output, messages to standard error. Exit: 0 done, 1 failed, 2 usage. "
    'Completion in bash: eval "$(_DISPATCHER_COMPLETE=bash_source dispatcher)"; zsh and fish likewise.',
)
@common_options
def main() -> None:
    """Background jobs on PostgreSQL, run by whichever replica leads."""
