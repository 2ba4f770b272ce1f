"""Recipes: a small tree of steps with their parameters, as TOML or from Python.

    description = "what it is for"
    goal = "bytes"              # "packed": as onnxcomp pack codes them; "latency": no step that slows down
    [[step]]
    pass = "cluster-weights"
    bits = "auto"               # the strongest that the budget tolerates, weight by weight
    when = "calibration"        # leave the step out when there is no calibration data
    exclude = ["*embedding*"]
    [[step]]
    choose = ["quantize-weights", "cluster-weights"]    # for each weight the pass and strength that serve best
    then = ["match-outputs"]    # applied to what was chosen before it is judged, so that it is part of the choice
    [[step]]
    try = [                     # for the whole model: each is measured, the fastest within the budget kept
        {pass = "quantize-static"},
        [{pass = "fuse-activations"}, {pass = "cast-float16"}],
    ]
    otherwise = [[{pass = "equalize-ranges"}, {pass = "quantize-static"}]]  # where the fastest breaks the budget
    ahead = [{pass = "prune-channels", latency = 0.85}]     # put ahead of the fastest where the budget has room
    [[step]]
    sequence = [{pass = "prune-weights", sparsity = 0.5}, {pass = "match-outputs"}]
    verify = "end"              # judged together: kept whole, in part or not at all; "each": one by one
    [[step]]
    repeat = [{pass = "prune-weights"}, {pass = "match-outputs"}]   # rounds; the passes of one are judged together
    schedule = {sparsity = [0.3, 0.5, 0.7]}     # a value a round; without: rounds = 3
    verify = "each"             # the first round that breaks the budget is the last; "end": all rounds together

Sequences hold steps of every kind, and may stand wherever a pass can that is tried or repeated. Everything is checked
before any work starts: names, keys, ranges, needs, and an order that would undo itself.
"""

from onnxcomp.recipe.choose import Choose
from onnxcomp.recipe.race import Race
from onnxcomp.recipe.recipe import Recipe, preset_names, preset_text, single
from onnxcomp.recipe.repeat import Repeat
from onnxcomp.recipe.sequential import Sequential, together
from onnxcomp.recipe.step import AUTO, Apply, Part, Step

__all__ = [
    "AUTO", "Apply", "Choose", "Part", "Race", "Recipe", "Repeat", "Sequential", "Step", "preset_names", "preset_text",
    "single", "together",
]  # fmt: skip
