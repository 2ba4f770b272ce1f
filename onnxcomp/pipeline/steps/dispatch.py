"""One way to do a step of any kind."""

from __future__ import annotations

from functools import singledispatch

from onnxcomp.pipeline.run import Run
from onnxcomp.recipe import Step


@singledispatch
def perform(step: Step, run: Run) -> None:
    """Do a step on the model as it is now: what it comes to goes on in the ledger, and is accounted for in the receipt,
    kept or not. Raises TypeError for a kind that no file of this folder knows."""
    raise TypeError(f"no way to perform {type(step).__name__}")
