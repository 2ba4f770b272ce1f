"""Of many small weights of one shape the first few tell what is worth trying on the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcomp.contract import Context
from onnxcomp.model import Model, load
from onnxcomp.pipeline.weight_search import candidates, fits
from onnxcomp.pipeline.weight_search.candidates import NO_GAIN, Candidates, Table
from onnxcomp.pipeline.weight_search.pioneers import PIONEERS
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.registry import get_pass

COUNT = 20
MILD = get_pass("quantize-weights")(bits=8)
STRONG = get_pass("quantize-weights")(bits=2)
ROUGH = get_pass("cluster-weights")(bits=2.0)
PASSES = (MILD, STRONG, ROUGH)


def chain(side: int, **others: np.ndarray) -> Model:
    rng = np.random.default_rng(0)
    values = {f"w{at}": rng.standard_normal((side, side)).astype(np.float32) for at in range(COUNT)} | others
    nodes = [helper.make_node("MatMul", [f"t{at}", name], [f"t{at + 1}"]) for at, name in enumerate(values)]
    ends = [helper.make_tensor_value_info(each, 1, ["N", side]) for each in ("t0", f"t{len(values)}")]
    held = [numpy_helper.from_array(each, name) for name, each in values.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something was fitted to a weight, or to a sample of it, from now on."""
    counts: Counter[str] = Counter()
    fitted = fits.fitted

    def counting(weight: Any, *rest: Any) -> Any:
        counts[weight.name] += 1
        return fitted(weight, *rest)

    monkeypatch.setattr(fits, "fitted", counting)
    return counts


def looked(model: Model, **options: Any) -> Table:
    return Candidates(model, PASSES, Context()).look(**options)


def test_what_saves_no_bytes_on_the_first_is_not_tried_on_the_rest(tried: Counter[str]) -> None:
    table = looked(chain(8))  # of 256 bytes, of which any decoder takes more than is left after 150
    assert len(tried) == PIONEERS
    assert {each.name: each.reason for each in table.skipped} == {f"w{at}": NO_GAIN for at in range(COUNT)}


def test_of_what_saves_bytes_everything_is_tried_on_every_weight(
    tried: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chain(40)
    table = looked(model, probe_error=0.01)
    monkeypatch.setattr(candidates, "split", lambda names, *rest: (list(names), []))
    assert table.options == looked(model, probe_error=0.01).options
    assert len(tried) == COUNT


def test_what_goes_far_beyond_noise_is_not_tried_where_nothing_else_would_be_kept(tried: Counter[str]) -> None:
    table = looked(chain(40), probe_error=0.01, tuning=Tuning(probed_weights=PIONEERS))
    measured, rest = f"w{PIONEERS - 1}", f"w{COUNT - 1}"
    assert {each.choice for each in table.options[measured]} > {each.choice for each in table.options[rest]}
    assert tried[rest] < tried[measured]
    assert 0 in {each.choice for each in table.options[rest]}, "8 bits are within noise"


def test_without_data_large_weights_stand_for_each_other_too(tried: Counter[str]) -> None:
    table = looked(chain(80))  # of 6,400 values each
    assert tried[f"w{PIONEERS - 1}"] > tried[f"w{COUNT - 1}"] > 0
    for name in (f"w{at}" for at in range(COUNT)):
        assert 0 in {each.choice for each in table.options[name]}, "8 bits are within noise"


def test_a_weight_that_has_few_levels_speaks_for_itself() -> None:
    rounded = np.resize(np.array([-1, 0.5, 1], np.float32), (40, 40))
    table = looked(chain(40, levels=rounded), probe_error=0.01, tuning=Tuning(probed_weights=PIONEERS))
    smallest = min(table.options["levels"], key=lambda each: each.size_bytes)
    assert smallest.error == pytest.approx(0, abs=1e-12) and smallest.choice == PASSES.index(ROUGH)
