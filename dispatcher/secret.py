"""Tokens of the HTTP API: how they look, and what of them is stored. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets

PREFIX = "djt_"  # lets scanners for leaked secrets find them
_SHAPE = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """A fresh token."""
    return PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether it looks like one."""
    return _SHAPE.fullmatch(text) is not None


def hash_token(token: str) -> bytes:
    """What is stored. Quick on purpose: 256 random bits cannot be guessed, however quick the hash."""
    return hashlib.sha256(token.encode()).digest()
