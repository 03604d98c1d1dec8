"""Lists in the daemon's environment: as JSON, or as texts with commas between."""

from __future__ import annotations

import json
import os

from dispatcher import Fail


def read_list(setting: str, example: str) -> list[str]:
    """The texts of a setting, none where it is not set; raises Fail with what to do for one that cannot be read."""
    text = os.environ.get(setting, "").strip()
    try:
        # A bracket alone does not make it JSON: addresses of IPv6 are written in them.
        entries = json.loads(text) if '"' in text or text == "[]" else text.split(",")
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError("no list of texts")
    except ValueError:
        raise Fail(f"{setting} must be a JSON list of texts, or texts with commas between, like {example}") from None
    return [entry.strip() for entry in entries if entry.strip()]
