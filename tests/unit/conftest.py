"""Fixtures of the tests that need no database."""

import pytest

from tests.unit.storm_forge import Forge


@pytest.fixture
def forge() -> Forge:
    """A history of a storm that a test may spoil."""
    return Forge()
