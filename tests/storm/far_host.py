"""`dispatcher` on what its own kind takes for another host: neither proofs of death nor signals reach across."""

from dispatcher import identity
from dispatcher.cli import main


def elsewhere() -> str:
    """The boot id of that host."""
    return "another host"


identity._boot_id = elsewhere

if __name__ == "__main__":
    main(prog_name="dispatcher")
