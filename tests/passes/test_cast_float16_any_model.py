"""cast-float16 on drawn models and on every operator: the result is valid, and its outputs are near."""

import pytest

from onnxcomp.contract import Context
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.precision import casts as float_casts
from onnxcomp.model import load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import apply, calibration_of
from onnxcomp.testing.comparing import differences
from onnxcomp.testing.promises import assert_keeps_promises
from tests.conformance.cases import Case, node_cases, weight_cases
from tests.graphs import draw_models, feeds_for
from tests.graphs.running import run

SHARDS = 8
# Some hundred times a type's own rounding, as a share of an output's largest value.
NEAR = {"float16": 3e-2, "bfloat16": 2e-1}
RANDOM = frozenset({"Dropout", "Bernoulli"})


@pytest.mark.parametrize("part", range(2))
def test_what_data_show_of_drawn_models_leaves_them_valid(part: int) -> None:
    changed = 0
    for index, proto in enumerate(draw_models(40, seed=32)[part::2]):
        feeds = feeds_for(proto, index)
        context = Context(calibration=calibration_of(proto, feeds))
        graph = open_graph(load(proto))
        changed += bool(get_pass("cast-float16")(scope="all").apply(graph, context).changed)
        got = run(close_graph(graph).to_bytes(), feeds)
        assert not differences(run(proto, feeds), got, rtol=NEAR["float16"]), index
    assert changed > 10


@pytest.mark.parametrize("part", range(4))
def test_drawn_models_come_out_valid_and_near(part: int) -> None:
    for index, proto in enumerate(draw_models(80, seed=31)[part::4]):
        feeds = feeds_for(proto, index)
        expected = run(proto, feeds)
        done = apply(proto, get_pass("cast-float16")(scope="all"), feeds)
        assert_keeps_promises(done, feeds, expected, where=f"model {index}")
        got = dict(Session(done.content).run(feeds))
        assert not differences(expected, got, rtol=NEAR["float16"]), index


def _problem(case: Case, dtype: str) -> str:
    """What is wrong with the result, or nothing."""
    done = apply(case.model, get_pass("cast-float16")(scope="all", dtype=dtype), case.feeds)
    assert_keeps_promises(done, case.feeds, case.outputs, where=case.name)
    is_random = any(node.op_type in RANDOM for node in case.model.graph.node)
    # The operator masks with its type's own least number, which one of its outputs shows.
    shows_mask = "qk_matmul" in case.name
    if not done.outcome.changed or not case.repeats or is_random or shows_mask:
        return ""
    got = dict(Session(done.content).run(case.feeds))
    different = differences(case.outputs, got, rtol=NEAR[dtype])
    return f"far off: {different}" if different else ""


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("dtype", sorted(NEAR))
def test_every_operator_computes_in_the_type_or_is_left_alone(
    shard: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Casts cost nothing here, so that all that can change does."""
    monkeypatch.setattr(float_casts, "CAST_COST", 0)
    failures = []
    step = SHARDS * (1 if dtype == "float16" else 4)  # hardly any operator has a kernel for bfloat16 on CPU
    for case in (*node_cases().cases[shard::step], *weight_cases().cases[shard::step]):
        try:
            problem = _problem(case, dtype)
        except Exception as error:  # noqa: BLE001 - collected, so that one run names every failing model
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures.append(f"{case.name}: {problem}")
    assert not failures, f"{len(failures)} models:\n" + "\n".join(failures)
