"""Each rule of the shipped suite is held: a pass that breaks it is caught by its check, and told what to mend."""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx
import pytest

from onnxcomp.contract import Pass
from onnxcomp.testing import Sample, check_pass, checks_of
from tests.testing import faulty, undescribed

# Three weights with biases beside them, in a chain, and an activation in between.
NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 2] y)
<float[4, 3] u = {1, 2, -3, 4, 5, 6, -7, 8, 9, 1, 2, 3}, float[3] b = {1, -1, 2},
 float[3, 3] v = {1, -2, 3, 4, 5, -6, 7, 8, 9}, float[3, 2] w = {1, 2, 3, -4, 5, 6}, float[2] c = {1, 2}> {
    [first] h = MatMul(x, u) [bias] a = Add(h, b) [middle] m = MatMul(a, v) [act] r = Relu(m) [last] y = Gemm(r, w, c)
}"""

CAUGHT: list[tuple[type[Pass], str, str, str]] = [  # the pass, the check, the rule, and words of what was found
    (faulty.Describes, "docstring", "docstring", "'Halves', which is not imperative"),
    (undescribed.IsNotDescribed, "module_docstring", "module docstring", "no docstring in tests.testing.undescribed"),
    (faulty.RoundsExactly, "effect", "effect", "rounding, which qualifies exact"),
    (faulty.CitesNobody, "paper", "paper", "no paper"),
    (faulty.IsNoDataclass, "dataclass", "dataclass", "no dataclass of its own"),
    (faulty.HasNoBound, "fields", "fields", "times has no lower bound"),
    (faulty.TakesAnything, "invalid_values", "invalid values", "is taken, and out of range"),
    (faulty.FailsWithoutWeights, "survives", "survives", "a model of one Identity: ValueError"),
    (faulty.AsksForData, "result", "needs", "needs calibration data"),
    (faulty.ClaimsExactness, "result", "exactness", r"changed the outputs \['y'\] of the net"),
    (faulty.ClaimsBits, "result", "exactness to the bit", r"some bit of the outputs \['y'\]"),
    (faulty.ClaimsForEveryChoice, "choices", "exactness", r"halve=True\) changed the outputs \['y'\] of the net"),
    (faulty.SaysNothing, "result", "said", "said nothing and changed the net"),
    (faulty.RenamesOutputs, "result", "valid", r"outputs \['y_halved'\] for \['y'\]"),
    (faulty.DoesNothing, "acts", "acts", "nothing was changed in 1 models; it skipped: not today"),
    (faulty.RollsDice, "determinism", "determinism", "other bytes the second time"),
    (faulty.WritesItsInput, "input_kept", "input kept", "the net was changed itself"),
    (faulty.SaysBoth, "outcome", "outcome", r"\['u', 'v', 'w'\] both changed and skipped"),
    (faulty.OutlivesItsEncoding, "encodings", "encodings", "the grid of u makes other values"),
    (faulty.RescalesInSecret, "origins", "origins", r"\['u', 'v'\] hold something else"),
    (faulty.MakesUnsaid, "structures_made", "structures made", "encoding of u is ZEROS"),
    (faulty.FillsZeros, "structures_destroyed", "structures destroyed", "u had ZEROS that are gone"),
    (faulty.SpreadsLevels, "structures_destroyed", "structures destroyed", "u had LEVELS that are gone"),
    (faulty.AsksNobody, "exclude_all", "exclude", r"\['u', 'v', 'w'\] changed though exclude is"),
    (faulty.KnowsOnlyStars, "exclude", "exclude", "u changed though it is excluded"),
    (faulty.ForgetsInclude, "include", "include", r"\['v', 'w'\] changed where only u is included"),
    (faulty.HasAllTheTime, "deadline", "deadline", r"context.is_over\(\) is never asked"),
    (faulty.StopsInSilence, "deadline", "deadline", r"\['u', 'v', 'w'\] left out, and is_cut_short is not set"),
    (faulty.TouchesBiases, "taking_back", "taking back", r"\['b', 'c'\] differ once \['u', 'v', 'w'\] are put back"),
    (faulty.EditsWhileLooking, "sites", "looking at sites", r"sites\(\) changed the net"),
    (faulty.HidesSites, "sites", "sites cover", r"apply changed \['v'\], which are no sites"),
    (faulty.AppliesOtherwise, "own_choice", "own choice", "other bytes by rewrite than by apply"),
    (faulty.ActsElsewhere, "subsets", "subsets", r"\['v'\] changed where \['u', 'w'\] is chosen"),
    (faulty.DividesByAll, "subsets", "weights alone", "without the other sites, though composes"),
    (faulty.ForgetsNodes, "touches", "touches", "u changed though first is excluded"),
    (faulty.GrowsDearer, "options", "options", "more bytes for .*'times': 2.* after .*'times': 1"),
    (faulty.NamesTheFirst, "weights_alone", "weights alone", r"\['v', 'w'\] changed and not named in the outcome"),
    (faulty.AsksWhileEditing, "by_itself", "by itself", r"edit asks for context.observe, which is where the model is"),
    (faulty.LooksAround, "by_itself", "by itself", "other values by itself for u, the net"),
    (faulty.HandsOutTheGraph, "by_itself", "by itself", "prepare gives a function for u, the net: .*pickle"),
]  # fmt: skip


def checks(kind: type[Pass]) -> dict[str, Callable[[], None]]:
    """The checks of a pass, on the net alone."""
    net = Sample.of(onnx.parser.parse_model(NET), name="the net")
    return dict(checks_of(kind, samples=[net], models=0))


@pytest.mark.parametrize(("kind", "check", "rule", "found"), CAUGHT, ids=lambda each: getattr(each, "__name__", None))
def test_fault_is_caught_by_its_check(kind: type[Pass], check: str, rule: str, found: str) -> None:
    with pytest.raises(AssertionError) as caught:
        checks(kind)[check]()
    shape = rf"{kind.pass_name()} breaks the rule {rule}\.\nIt claims: .+\.\nFound: .*{found}.*\.\nTo mend it: .+\."
    assert re.fullmatch(shape, str(caught.value), re.DOTALL), str(caught.value)


def test_the_fault_is_the_only_one() -> None:
    """What the faulty passes are made from passes all checks, so that each is caught for what it does otherwise."""
    for check in checks(faulty.Halving).values():
        check()


def test_every_check_catches_something() -> None:
    caught = {check for _, check, _, _ in CAUGHT}
    assert caught == checks(faulty.Halving).keys()


def test_check_pass_raises_what_a_check_raises() -> None:
    with pytest.raises(AssertionError, match="describes breaks the rule docstring"):
        check_pass(faulty.Describes, models=0)


def test_sites_are_asked_of_site_passes_only() -> None:
    assert "sites" not in checks(faulty.RescalesInSecret)
    assert "weights_alone" not in checks(faulty.HidesSites)
    assert {"sites", "weights_alone"} <= checks(faulty.Halving).keys()
