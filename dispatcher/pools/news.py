"""What a worker process tells while a job runs, passed on in the daemon: progress, logs, stacks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress

from dispatcher.inflight import Execution
from dispatcher.pools.attempt import Attempts
from dispatcher.pools.messages import FromWorker, HookFailed, Logged, Progress, Stack, Started

START_S = 60.0  # for a process to start and import its executor, before the time of its job begins


def pass_on(execution: Execution, news: Iterable[FromWorker], attempts: Attempts) -> None:
    """Makes it known as if the job ran here."""
    for one in news:
        match one:
            case Started():
                attempts.started(execution)
            case Progress(percent, message):
                assert execution.ctx is not None
                execution.ctx.progress(percent, message)
            case Logged(parts):
                record = logging.makeLogRecord(parts)
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    with suppress(Exception):  # a handler's, which is no fault of the job
                        logger.handle(record)
            case Stack(text):
                execution.stack = text
            case HookFailed(type):
                attempts.conclusion.hook_failed(type)
