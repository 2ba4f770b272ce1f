"""What a pass owes, and what its author is told where it does not keep it."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract import Pass


@dataclass(frozen=True)
class Rule:
    """One thing that a pass owes.

    name: of the check that holds a pass to it. claim: what the pass says by what it declares, or by being a pass at
    all. mend: what its author can do.
    """

    name: str
    claim: str
    mend: str

    def broken(self, kind: type[Pass], found: str) -> AssertionError:
        """The error that names the pass, the rule, what was found and what to do."""
        return AssertionError(
            f"{kind.pass_name()} breaks the rule {self.name}.\n"
            f"It claims: {self.claim}.\nFound: {found}.\nTo mend it: {self.mend}."
        )

    def expect(self, holds: object, kind: type[Pass], found: str) -> None:
        """Raise AssertionError unless it holds."""
        if not holds:
            raise self.broken(kind, found)
