"""TCP ports that a test names to another process, or binds again later: nothing holds them meanwhile.

They lie below those that the system gives to connections and to listeners that ask for any: none of these takes one
away, nor does a client that tries one over and over connect to itself. Each worker of a run has some of its own.
"""

import itertools
import os
import secrets
import socket

FIRST, EACH, WORKERS = 10_000, 500, 10  # up to 15000, where the ports of dispatcher.embedded begin

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_turns = itertools.count(secrets.randbelow(EACH))  # anywhere: other runs on this machine have the same workers


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens. The same one comes again only after all others."""
    for turn in itertools.islice(_turns, EACH):
        port = FIRST + _worker * EACH + turn % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free TCP port on 127.0.0.1 among the {EACH} of this worker")
