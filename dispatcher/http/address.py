"""Where the API is, and the token that it knows us by."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dispatcher.errors import SettingsError

_SENDABLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Checked, so that no library has a reason to quote the token in an error."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def find(cls, url: str | None, token: str | None) -> Address:
        """What is given, else what the environment says; raises SettingsError."""
        found_url = (url or os.environ.get("DISPATCHER_API_URL", "")).strip()
        found_token = (token or os.environ.get("DISPATCHER_API_TOKEN", "")).strip()
        if not found_url:
            raise SettingsError("where is the HTTP API? Give its url, or set DISPATCHER_API_URL")
        if not found_token:
            raise SettingsError("a token is needed: give one, or set DISPATCHER_API_TOKEN")
        if not _SENDABLE.fullmatch(found_token):
            raise SettingsError("the token has a sign that no token has")
        return cls(_checked(found_url), found_token)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise SettingsError(f"the url of the HTTP API is none: {exc}") from None
    if "@" in parts.netloc:  # would go before the token, and into errors
        raise SettingsError("the url of the HTTP API must not hold a user or a password")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable():
        raise SettingsError(f"the url of the HTTP API must be like https://jobs.example.com, not {url!r:.200}")
    if parts.query or parts.fragment:
        raise SettingsError("the url of the HTTP API must have no ? and no #")
    return url.rstrip("/")
