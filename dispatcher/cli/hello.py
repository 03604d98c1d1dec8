"""The executor that `dispatcher dev` adds, to have one to try."""

from __future__ import annotations

from pydantic import BaseModel, Field

from dispatcher import Context, Job, executor


class Hello(BaseModel):
    """Whom to greet, and how slowly."""

    name: str = "world"
    seconds: float = Field(0.0, ge=0, le=600)


@executor("hello", payload=Hello, max_attempts=1)
def hello(job: Job, ctx: Context) -> dict[str, str]:
    """Greets; `seconds` makes it take its time."""
    wanted: Hello = job.payload
    for part in range(20 if wanted.seconds else 0):
        ctx.progress(part * 5, "thinking")
        ctx.sleep(wanted.seconds / 20)
    return {"greeting": f"Hello, {wanted.name}!"}
