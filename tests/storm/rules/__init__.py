"""The promises as facts about a history: running.py while jobs run, ends.py how they end, asked.py what was asked for.

A rule yields a line for each breach, and names the jobs. It accuses only on evidence (history.py), so what it finds has
happened; what leaves no trace it cannot find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.storm.history import History

Rule = Callable[[History], Iterator[str]]

# Between the clock that executors write down and the database's, which is another one of the same host: how far one may
# drift from the other within a storm, and how long a statement may take after it has read the clock.
CLOCKS_S = 0.5
