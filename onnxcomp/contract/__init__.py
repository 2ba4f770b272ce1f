"""What a pass is: a frozen dataclass whose fields are its parameters, and one method, ``apply``.

    @dataclass(frozen=True, kw_only=True)
    class PruneWeights(WeightPass):
        \"\"\"Set the weights of smallest magnitude to zero.\"\"\"

        effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
        paper = "https://arxiv.org/abs/1506.02626"
        makes = frozenset({Structure.ZEROS})

        sparsity: float = parameter(0.5, low=0.0, high=0.99, help="share of the weights set to zero")

The first line of the docstring is the command line's help; the fields become options, recipe keys and
the tests of invalid values. The pipeline owns copying, cleaning up, checking, verifying and taking back:
a pass edits the graph that it is given and says what it changed and what it left alone, and why. A pass that acts at
places that can be chosen is a ``SitePass``; one that changes weights, each by itself, a ``weight_pass.WeightPass``.
"""

from onnxcomp.contract.context import Context, matches
from onnxcomp.contract.outcome import Change, Outcome, Skip
from onnxcomp.contract.parameters import Parameter, parameter, parameters
from onnxcomp.contract.passes import Effect, Exact, Needs, Pass, Structure
from onnxcomp.contract.sites import (
    Choice,
    Fields,
    Option,
    Quantity,
    SelectingPass,
    Site,
    SitePass,
    Survey,
    is_composed,
    own_choice,
)

__all__ = [
    "Change", "Choice", "Context", "Effect", "Exact", "Fields", "Needs", "Option", "Outcome", "Parameter", "Pass",
    "Quantity", "SelectingPass", "Site", "SitePass", "Skip", "Structure", "Survey", "is_composed", "matches",
    "own_choice", "parameter", "parameters",
]  # fmt: skip
