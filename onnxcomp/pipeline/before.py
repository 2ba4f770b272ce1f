"""The model that a run is held against, where that is not the one it starts from: an earlier run has lost something.

original -> (an earlier run) -> model -> this run          held against the original
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.errors import ModelError
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.graph.weights.roles import with_true_encodings
from onnxcomp.model import Model, load
from onnxcomp.pipeline.history.digests import source_digest
from onnxcomp.verify import Verifier


def opened_reference(source: Any, model: Model) -> Model | None:
    """The model to hold against, None where none is named; its files are inputs of the run."""
    if source is None:
        return None
    found = with_true_encodings(seeded(load(source)))
    model.inputs.update(found.inputs)
    return found


def described_reference(source: Any) -> dict[str, Any]:
    """What the receipt says of it."""
    if source is None:
        return {}
    model = load(source)
    return {"path": str(model.path or ""), "bytes": model.size_bytes, "sha256": source_digest(model)}


def allow_present(verifier: Verifier, model: Model) -> None:
    """Where the model that a run starts from is further from the reference than the budget allows, allow just that: the
    run is to come nearer, and no one is to get worse.

    Raises ModelError where the two cannot be compared.
    """
    verdict = verifier.check(model)
    if verdict.failed:
        raise ModelError(f"{model.name}: cannot be held against the reference: {'; '.join(verdict.reasons)}.")
    if verdict.passed or not np.isfinite(verdict.divergence):
        return
    found = verdict.divergence
    verifier.notes.append(
        f"the model itself is off the reference by {found:.3g}, over {verifier.limit:.3g}: no more than that is allowed"
    )
    verifier.allow(found)
