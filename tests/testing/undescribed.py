from dataclasses import dataclass

from tests.testing.faulty import Halving


@dataclass(frozen=True, kw_only=True)
class IsNotDescribed(Halving):
    """Halve all weights, in a module that says nothing."""
