"""What becomes of each kind of step: one file a kind, reached by ``perform``."""

# Each of these files registers its kind.
from onnxcomp.pipeline.steps import apply, choose, race, repeat, sequential
from onnxcomp.pipeline.steps.dispatch import perform
from onnxcomp.pipeline.steps.exact import apply_exact

__all__ = ["apply", "apply_exact", "choose", "perform", "race", "repeat", "sequential"]
