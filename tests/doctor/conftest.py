"""The command line, for what the doctor says there."""

from __future__ import annotations

from tests.cli.conftest import invoke

__all__ = ["invoke"]
