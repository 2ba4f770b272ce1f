"""What holds for all tests."""

from __future__ import annotations

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """The collector leaves alone what collecting the tests made, thousands of them, and comes less often: an eighth of
    the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
