"""How much room a run needs for temporary files, by a rule: known before the work starts, and no less than it takes.

    only exact passes     the model once: what they rewrite of it
    whatever searches     5 times the model: what candidates and trials keep

Where there is no room to lay original and result beside each other in the end, they are not measured.
"""

from __future__ import annotations

from onnxcomp.model import Model
from onnxcomp.recipe import Recipe

REWRITTEN = 1
SEARCHED = 5


def scratch_bytes(model: Model, recipe: Recipe) -> int:
    """The bytes of temporary files that a recipe needs on a model, at most."""
    is_exact = all(step.is_exact for step in recipe.steps)
    return (REWRITTEN if is_exact else SEARCHED) * model.size_bytes
