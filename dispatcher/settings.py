"""Settings: flag over environment over TOML file over default."""

from __future__ import annotations

import json
import os
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from dispatcher.errors import SettingsError

ENV_PREFIX = "DISPATCHER_"
_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def parse_duration(value: Any) -> timedelta:
    """Seconds as a number, or a text such as `5s`, `500ms`, `15min`, `1h30min`, `1d`; never negative."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        seconds = _parse_text(str(value))
    if not 0 <= seconds < 100 * 365 * 86400:
        raise ValueError(f"{value!r} is no duration: it must not be negative, nor longer than 100 years")
    return timedelta(seconds=seconds)


def _parse_text(text: str) -> float:
    if text.strip().startswith("-"):
        raise ValueError(f"{text!r} is no duration: it must not be negative")
    seconds, at = 0.0, 0
    while match := _DURATION.match(text.lower(), at):
        number, unit = match.groups()
        if unit not in _UNITS and not (unit == "" and match.end() == len(text) and at == 0):
            break
        seconds += float(number) * _UNITS.get(unit, 1)
        at = match.end()
    if at == 0 or at != len(text):
        raise ValueError(f"{text!r} is no duration: write 5s, 500ms, 15min, 2h or 1d")
    return seconds


def format_duration(value: timedelta) -> str:
    """The shortest text that parse_duration reads back."""
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.15g}s"


def parse_limits(value: Any) -> dict[str, int]:
    """`type=n,type=n`, or a JSON object; `*` is the limit over all types."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            value = json.loads(text)
        else:
            pairs = [pair.partition("=") for pair in re.split(r"[,\s]+", text) if pair]
            value = {name: number for name, _, number in pairs}
    if not isinstance(value, dict):
        raise ValueError('write limits as type=n,type=n or as JSON {"type": n}')
    limits = {}
    for name, number in value.items():
        if not re.fullmatch(r"\d{1,9}", str(number)) or int(number) < 1:
            raise ValueError(f"the limit of {name!r} must be a whole number of 1 or more, not {number!r}")
        limits[str(name)] = int(number)
    return limits


def parse_stuck(value: Any) -> int | str:
    """A whole number, `half` (of the threads) or `never`."""
    text = str(value).strip().lower()
    if text in ("half", "never"):
        return text
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"must be a whole number, half or never, not {value!r}")
    return int(text)


def parse_names(value: Any) -> list[str]:
    """Names separated by commas or spaces, or a JSON list."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else re.split(r"[,\s]+", text)
    return [str(name) for name in value if str(name)]


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]
Limits = Annotated[dict[str, int], NoDecode, BeforeValidator(parse_limits)]
Names = Annotated[list[str], NoDecode, BeforeValidator(parse_names)]
Stuck = Annotated[int | Literal["half", "never"], BeforeValidator(parse_stuck)]


def _cores() -> int:
    """Those that this process may use, which are fewer in many a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """All settings of the dispatcher; each is an environment variable DISPATCHER_<NAME> as well."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    dsn: SecretStr = Field(SecretStr(""), description="PostgreSQL connection; empty: libpq's PG* variables")
    lease_name: str = Field("default", description="which lease this replica contends for", min_length=1, max_length=60)
    threads: int = Field(16, ge=1, le=1000, description="worker threads of this replica")
    processes: int = Field(
        default_factory=_cores, ge=1, le=1000, description="worker processes of this replica, for pool process"
    )
    async_jobs: int = Field(256, ge=1, le=10_000, description="jobs at once on the event loop, for pool async")
    dask_scheduler: str = Field("", description="address of the Dask scheduler, for pool dask: tcp://host:8786")
    dask_jobs: int = Field(
        0, ge=0, le=10_000, description="jobs at once on Dask; 0: as many as the cluster has threads"
    )
    poll_interval: Duration = Field(timedelta(seconds=1), description="the net under a lost notification")
    heartbeat_interval: Duration = Field(
        timedelta(seconds=1), description="longest silence of a replica's lease session"
    )
    lease_duration: Duration = Field(timedelta(seconds=5), description="silence after which the server ends a leader")
    orphan_after: Duration = Field(
        timedelta(seconds=30), description="absence after which a replica's jobs are taken from it"
    )
    job_timeout: Duration = Field(timedelta(minutes=15), description="timeout of types that name none")
    shutdown_grace: Duration = Field(timedelta(seconds=20), description="how long running jobs may go on after SIGTERM")
    max_stuck_threads: Stuck = Field(
        "half",
        description="threads stuck with jobs past their timeout, more of which restart the replica; half: of threads",
    )
    limits: Limits = Field(
        default_factory=dict, description="running jobs per type over the fleet; * is all types together"
    )
    priority_aging: Duration = Field(
        timedelta(0), description="a waiting job gains a point of priority each time it has waited this long; 0: never"
    )
    executors: Names = Field(default_factory=list, description="modules with executors, besides installed entry points")
    types: Names = Field(default_factory=list, description="serve only these types, with a lease of their own")
    metrics_host: str = Field("127.0.0.1", description="where /metrics, /healthz and /readyz listen")
    metrics_port: int = Field(9464, ge=0, le=65535, description="0: any free port")
    api_host: str = Field("127.0.0.1", description="where the HTTP API listens")
    api_port: int = Field(8080, ge=0, le=65535, description="0: any free port")
    api_max_body_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, le=1024**3, description="largest body of a request that brings many jobs"
    )
    max_pending: int = Field(
        0, ge=0, le=10**9, description="pending jobs of a tenant that the HTTP API lets wait; 0: any"
    )
    log_format: Literal["text", "json"] = Field("text", description="text or json")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning or error")
    retention_succeeded: Duration = Field(timedelta(days=1), description="how long succeeded jobs are kept")
    retention_failed: Duration = Field(
        timedelta(days=14), description="how long failed, partial and canceled jobs are kept"
    )
    max_payload_bytes: int = Field(1024 * 1024, ge=2, le=200 * 1024 * 1024, description="largest payload, as JSON text")
    max_result_bytes: int = Field(
        1024 * 1024, ge=2, le=200 * 1024 * 1024, description="largest result in a row, as JSON text"
    )
    result_store: str = Field("", description="folder or URL where files and larger results are stored; empty: nowhere")

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        # A holder must be able to miss a heartbeat and still be in time.
        if self.lease_duration <= 2 * self.heartbeat_interval:
            raise ValueError("lease_duration must exceed twice heartbeat_interval")
        if self.heartbeat_interval < timedelta(milliseconds=50):
            raise ValueError("heartbeat_interval must be at least 50ms")
        if self.poll_interval < timedelta(milliseconds=10):
            raise ValueError("poll_interval must be at least 10ms")
        # Otherwise jobs would be taken from a replica whose session the server has not even ended yet.
        if self.orphan_after <= self.lease_duration:
            raise ValueError("orphan_after must exceed lease_duration")
        if self.shutdown_grace >= self.orphan_after:
            raise ValueError("shutdown_grace must be below orphan_after")
        return self

    @property
    def stuck_limit(self) -> int | None:
        """max_stuck_threads as a number; None for never."""
        match self.max_stuck_threads:
            case "half":
                return self.threads // 2
            case "never":
                return None
            case number:
                return number

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (init) over environment; load() adds the file below both."""
        return init_settings, env_settings


def load(flags: dict[str, Any] | None = None, file: str | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings, and where each came from: flag, environment, file or default. Raises SettingsError, one line."""
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    from_file = _read(file or os.environ.get(ENV_PREFIX + "CONFIG"))
    origin = dict.fromkeys(Settings.model_fields, "default")
    merged: dict[str, Any] = {}
    for name in Settings.model_fields:
        if name in given:
            merged[name], origin[name] = given[name], "flag"
        elif ENV_PREFIX + name.upper() in os.environ:
            merged[name], origin[name] = (
                os.environ[ENV_PREFIX + name.upper()],
                f"environment {ENV_PREFIX}{name.upper()}",
            )
        elif name == "dsn" and "DATABASE_URL" in os.environ:
            merged[name], origin[name] = os.environ["DATABASE_URL"], "environment DATABASE_URL"
        elif name in from_file:
            merged[name], origin[name] = from_file[name], f"file {file or os.environ.get(ENV_PREFIX + 'CONFIG')}"
    if unknown := set(from_file) - set(Settings.model_fields):
        raise SettingsError(f"unknown setting in the file: {', '.join(sorted(unknown))}")
    try:
        return Settings(**merged), origin
    except ValidationError as exc:
        raise SettingsError(_explain(exc)) from None  # None: the cause would show the values, a password among them


def _read(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read the settings file {file}: {exc.strerror}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"the settings file {file} is not TOML: {exc}") from exc


def _explain(exc: ValidationError) -> str:
    parts = []
    for error in exc.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)
