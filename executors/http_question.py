"""What is asked of another server: the part of a payload that all requests share, and what is sent for it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dispatcher import Job

from .http_answer import Redactor
from .http_secrets import Secret, read_secret
from .outside import UNSENDABLE
from .outside_rules import Target

OURS = ("dispatcher-", "webhook-", "proxy-")


class Body(BaseModel):
    """What is sent: one of these."""

    model_config = ConfigDict(extra="forbid")

    as_json: Any = Field(None, alias="json")
    """Any JSON value, sent as application/json."""
    as_text: str = Field("", alias="text")
    """Sent in UTF-8."""
    as_bytes: str = Field("", alias="bytes")
    """In base64."""

    @model_validator(mode="after")
    def _one(self) -> Body:
        if len(self.model_fields_set) != 1:
            raise ValueError("a body is one of json, text and bytes")
        self.encoded()
        return self

    def encoded(self) -> tuple[bytes, str]:
        """Its bytes, and what kind they are."""
        if "as_text" in self.model_fields_set:
            return self.as_text.encode(), "text/plain; charset=utf-8"
        if "as_bytes" in self.model_fields_set:
            try:
                return base64.b64decode(self.as_bytes, validate=True), "application/octet-stream"
            except binascii.Error:
                raise ValueError("bytes must be in base64") from None
        return json.dumps(self.as_json, ensure_ascii=False, allow_nan=False).encode(), "application/json"


def _sendable(headers: dict[str, str | Secret]) -> dict[str, str | Secret]:
    for name in headers:
        plain = name.lower().replace("_", "-")  # some receivers take one for the other
        if plain in UNSENDABLE or plain.startswith(OURS):
            raise ValueError(f"{name} is not for the payload to set")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("a header may stand there once")
    return headers


Url: TypeAlias = Annotated[str, Field(max_length=8000)]
Headers: TypeAlias = Annotated[dict[str, str | Secret], AfterValidator(_sendable)]


class Question(BaseModel):
    """A request to an allowed host."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    """Of a host in DISPATCHER_HTTP_HOSTS; without a password, which belongs into a header."""
    method: Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: Headers = {}
    """A value is a text, or {"secret": "NAME", "prefix": "Bearer "} for one from the daemon's environment."""
    body: Body | None = None
    follow_redirects: bool = False
    """At most 5; another origin gets neither headers nor body."""

    def prepare(self, job: Job, target: Target, redactor: Redactor) -> tuple[dict[str, str], bytes | None]:
        """The headers, with secrets that this host may get, and the body."""
        body, kind = (None, None) if self.body is None else self.body.encoded()
        headers = {"content-type": kind} if kind else {}
        for name, value in self.headers.items():
            if isinstance(value, Secret):
                headers[name.lower()] = value.prefix + redactor.add(read_secret(value.secret, target))
            else:
                headers[name.lower()] = value
        return headers | {"dispatcher-job-id": str(job.id), "dispatcher-attempt": str(job.attempt)}, body
