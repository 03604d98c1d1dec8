"""Clients of the HTTP API, for programs without a connection to the database. Need the extra `http`.

The same methods as those of dispatcher.Client, without `conn`, with the same answers and the same errors; besides them
ApiUnavailable (a DatabaseUnavailable), AccessDenied and TooManyJobs. What the API has no route for is not there: purge,
retry_where, count_ended, predecessors, ask_to_resign, tokens, and payloads that come as text.

    Client                 a method is one line on a call
      jobs, control        what is asked and what the answer means, written once, without I/O
      sender, delivery     connections; when one request is sent again
      address, reading     what comes from outside: settings, answers, problems
"""

from __future__ import annotations

try:
    from dispatcher.http.async_client import AsyncClient
    from dispatcher.http.client import Client
except ModuleNotFoundError as exc:
    if exc.name != "httpx":
        raise
    raise ImportError("dispatcher.http needs httpx: pip install 'pg-dispatcher[http]'") from exc

__all__ = ["AsyncClient", "Client"]
