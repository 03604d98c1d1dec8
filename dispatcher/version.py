"""The version, in one place."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pg-dispatcher")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"
