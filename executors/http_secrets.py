"""Secrets of requests: by name from the daemon's environment, each for hosts of its own; and signatures with them.

Whoever may enqueue a job names a secret and never sees it. DISPATCHER_SECRET_NAME holds it and
DISPATCHER_SECRET_NAME_HOSTS says who may get it, so that no job can send one host's secret to another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from dispatcher import Fail

from .outside_rules import Target, read_rules

PREFIX = "DISPATCHER_SECRET_"

SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")]


class Secret(BaseModel):
    """A value that stands in the daemon's environment."""

    model_config = ConfigDict(extra="forbid")

    secret: SecretName
    """NAME for DISPATCHER_SECRET_NAME."""
    prefix: str = ""
    """A text before it, such as "Bearer "."""


class Signature(BaseModel):
    """How a request is signed."""

    model_config = ConfigDict(extra="forbid")

    secret: SecretName
    """NAME for DISPATCHER_SECRET_NAME: whsec_ and base64, or any text."""


def read_secret(name: str, target: Target) -> str:
    """A secret, if this host may get it; else Fail with what to do."""
    variable, hosts = PREFIX + name, f"{PREFIX}{name}_HOSTS"
    value = os.environ.get(variable, "").strip()
    if not value or name.endswith("_HOSTS"):
        raise Fail(f"there is no secret {name}: set {variable} for the daemon")
    rules = read_rules(hosts)
    if not rules:
        raise Fail(f"secret {name} is for no host: set {hosts} for the daemon, in the form of DISPATCHER_HTTP_HOSTS")
    if not any(rule.matches(*target.origin, target.address) for rule in rules):
        raise Fail(f"secret {name} is not for {target.scheme}://{target.authority}: {hosts} has no entry for it")
    return value


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a signed webhook (standardwebhooks.com): HMAC-SHA256 of id, time and body."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise Fail("the secret to sign with begins with whsec_ and does not go on in base64") from None
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
