"""When a request is sent again: after a lost connection, and where the server asks for it. No I/O.

A POST is sent again only because it has an Idempotency-Key: the server does it once, and answers again as it did first.
The answer of a DELETE may be lost as well; that there is nothing any more is then what was wanted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import tenacity

from dispatcher.errors import ApiUnavailable, DispatcherError
from dispatcher.http.exchange import Answer, Request
from dispatcher.http.reading import refusal

WITHIN_S = 60.0  # then the caller should know, however many tries are left
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0  # five pauses of that kind outlast a server that starts again
AWAY = frozenset({429, 502, 503, 504})  # 502 and 504: a proxy in front that reached nobody
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


class Again(Exception):
    """It may be sent again, not before `after_s`; `error` is what it comes to where it is not."""

    def __init__(self, error: DispatcherError, after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s


class Delivery:
    """One request, until it is answered."""

    def __init__(self, request: Request, url: str) -> None:
        self.request = request
        self._where = url
        self._uncertain = False

    def lost(self, exc: httpx.RequestError) -> Exception:
        """What an error of the network means; the request may have arrived nevertheless."""
        self._uncertain |= not isinstance(exc, _UNSENT)
        line = " ".join(str(exc).split()) or type(exc).__name__
        error = ApiUnavailable(f"cannot reach the HTTP API at {self._where}: {line}")
        return Again(error) if isinstance(exc, httpx.TransportError) and not isinstance(exc, _HOPELESS) else error

    def judge(self, answer: Answer) -> Answer:
        """An answer that is one; raises Again."""
        if answer.status in AWAY or (answer.status == 409 and "Retry-After" in answer.headers):
            # The server may have lost its own connection, to the database, with the commit under way.
            self._uncertain |= answer.status != 429
            raise Again(refusal(answer), retry_after_s(answer.headers))
        return Answer(204, {}) if self._uncertain and self._is_gone(answer) else answer

    def policy(self, retries: int) -> dict[str, Any]:
        """For tenacity."""
        patience_s = self.request.patience_s
        within_s = WITHIN_S if patience_s is None else min(WITHIN_S, patience_s)
        return {
            "retry": tenacity.retry_if_exception_type(Again),
            "stop": tenacity.stop_any(tenacity.stop_after_attempt(retries + 1), tenacity.stop_before_delay(within_s)),
            "wait": _pause_s,
            "reraise": True,
        }

    def _is_gone(self, answer: Answer) -> bool:
        """True if what was to be removed is not there, and it is the API that says so."""
        if self.request.method != "DELETE" or answer.status != 404:
            return False
        return not isinstance(refusal(answer), ApiUnavailable)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """How long the server asks to wait, 0 where it does not say; in seconds or as a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _pause_s(state: tenacity.RetryCallState) -> float:
    """Twice as long each time and never quite the same, so that clients do not come back all at once."""
    again = state.outcome.exception() if state.outcome is not None else None
    after_s = again.after_s if isinstance(again, Again) else 0.0
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (state.attempt_number - 1))
    return after_s + random.uniform(longest / 2, longest)  # noqa: S311 - no secret
