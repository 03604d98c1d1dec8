"""Helpers for the tests of your executors: one run in line without a database, or a real queue drained in line.

The fixtures for pytest are in `dispatcher.testing.plugin`; nothing else here needs pytest.
"""

from __future__ import annotations

from dispatcher.testing.fake import Enqueued
from dispatcher.testing.inline import Ended, run_inline
from dispatcher.testing.queue import Queue

__all__ = ["Ended", "Enqueued", "Queue", "run_inline"]
