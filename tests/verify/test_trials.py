"""onnxcomp.verify.trials: the verdict of a model with other values, against that of a model made with these values."""

from __future__ import annotations

import functools
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxcomp.verify.trials as under_test
from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Context
from onnxcomp.errors import TargetError
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights, with_arrays
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.testing.models import draw_models, feeds_for
from onnxcomp.verify import Verdict, Verifier
from tests.verify.chains import (
    BRANCHES,
    CHAIN,
    CHANGED,
    LOOP,
    RESHAPED,
    RNG,
    TWICE,
    WEIGHTS,
    Arrays,
    Storing,
    as_inputs,
    as_nodes,
    behind_casts,
    function_model,
    in_branches,
    model_of,
    plainly,
    sparsely,
)
from tests.verify.models import CPU, X, opened

ROUNDING = 1e-4  # of a divergence: the parts of a model may add in another order than the whole

@dataclass(frozen=True)
class Opened:
    """What a session was asked for: operators of the main graph, inputs, and what it was given from memory."""

    operators: tuple[str, ...]
    inputs: frozenset[str]
    given: frozenset[str]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    seen: list[Opened] = []
    plain = Target.session

    def session(self: Target, model: bytes, **options: Any) -> Session:
        graph = onnx.load_from_string(model).graph
        constants = {each.name for each in graph.initializer}
        inputs = frozenset(each.name for each in graph.input) - constants
        operators = tuple(node.op_type for node in graph.node)
        seen.append(Opened(operators, inputs, frozenset(options.get("initializers") or ())))
        return plain(self, model, **options)

    monkeypatch.setattr(Target, "session", session)
    return seen


def changed(text: str, values: Arrays, kept: type = np.float32) -> Model:
    """The model of plain initializers with some other values. kept: the type that the others were rounded to."""
    return model_of(text, {**{name: np.float32(kept(each)) for name, each in WEIGHTS.items()}, **values})


def assert_same(found: Verdict, expected: Verdict, rounding: float = ROUNDING) -> None:
    assert (found.failed, found.reasons) == (expected.failed, expected.reasons)
    assert found.divergence == pytest.approx(expected.divergence, rel=rounding)
    assert found.interval == pytest.approx(expected.interval, rel=rounding)
    assert [(each.name, each.measure) for each in found.outputs] == [
        (each.name, each.measure) for each in expected.outputs
    ]
    for one, other in zip(found.outputs, expected.outputs, strict=True):
        assert one.value == pytest.approx(other.value, rel=rounding, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "storing"),
    [
        (CHAIN, plainly), (CHAIN, as_nodes), (CHAIN, as_inputs), (CHAIN, behind_casts), (CHAIN, sparsely),
        (TWICE, plainly), (TWICE, as_nodes), (BRANCHES, plainly), (LOOP, plainly), (RESHAPED, plainly),
    ],
    ids=["initializers", "Constant nodes", "inputs", "float16", "sparse", "twice", "twice, nodes", "If", "Loop",
         "shapes"],
)  # fmt: skip
@pytest.mark.parametrize("names", ["u", "w", "v", "wv", "uwv", ""])
def test_sessions_are_given_the_values(
    tmp_path: Path, sessions: list[Opened], text: str, storing: Storing, names: str
) -> None:
    model = model_of(text, storing=storing)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    kept = np.float16 if storing is behind_casts else np.float32
    values = {name: CHANGED[name] for name in names}
    expected = verifier.check(changed(text, values, kept))
    sessions.clear()
    assert_same(verifier.trials(model).check(values), expected)
    assert all(each.given for each in sessions)


@pytest.mark.parametrize(
    ("text", "storing"),
    [
        (CHAIN, plainly), (CHAIN, as_nodes), (CHAIN, as_inputs), (CHAIN, behind_casts), (CHAIN, sparsely),
        (TWICE, plainly), (BRANCHES, plainly), (LOOP, plainly), (RESHAPED, plainly),
    ],
    ids=["initializers", "Constant nodes", "inputs", "float16", "sparse", "twice", "If", "Loop", "shapes"],
)  # fmt: skip
def test_of_many_nodes_one_session_is_fed_all_values(
    tmp_path: Path, sessions: list[Opened], monkeypatch: pytest.MonkeyPatch, text: str, storing: Storing
) -> None:
    monkeypatch.setattr(under_test, "FED_FROM_NODES", 1)
    model = model_of(text, storing=storing)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    kept = np.float16 if storing is behind_casts else np.float32
    changes = [{name: CHANGED[name] for name in names} for names in ("w", "wv", "uwv", "")]
    expected = [verifier.check(changed(text, values, kept)) for values in changes]
    sessions.clear()
    trials = verifier.trials(model)
    for values, each in zip(changes, expected, strict=True):
        assert_same(trials.check(values), each)
    assert len(sessions) == 1 and set(WEIGHTS) & sessions[0].inputs


def test_large_weights_are_not_fed(tmp_path: Path, sessions: list[Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    monkeypatch.setattr(under_test, "FED_FROM_NODES", 1)
    monkeypatch.setattr(under_test, "FED_BYTES", 8)
    sessions.clear()
    verifier.trials(model).check({"w": CHANGED["w"]})
    assert not any(set(WEIGHTS) & each.inputs for each in sessions)


def test_what_has_to_be_constant_is_not_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "FED_FROM_NODES", 1)
    refused = []
    plain = Target.session

    def session(self: Target, model: bytes, **options: Any) -> Session:
        if set(WEIGHTS) & {each.name for each in onnx.load_from_string(model).graph.input}:
            refused.append(model)
            raise TargetError("a weight has to be constant")
        return plain(self, model, **options)

    monkeypatch.setattr(Target, "session", session)
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    values = {"w": CHANGED["w"]}
    assert_same(verifier.trials(model).check(values), verifier.check(changed(CHAIN, values)))
    assert refused


@pytest.mark.parametrize("made", ["in a branch", "in a function"])
def test_what_no_session_can_be_given_is_written(tmp_path: Path, sessions: list[Opened], made: str) -> None:
    def model_with(v: np.ndarray) -> Model:
        values = {**WEIGHTS, "v": v}
        return function_model(v) if made == "in a function" else model_of(BRANCHES, values, in_branches)

    model = model_with(WEIGHTS["v"])
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    keys = [each.name for each in weights(open_plain(model)) if each.name.endswith("/v")]
    expected = verifier.check(model_with(CHANGED["v"]))
    assert expected.divergence > 0
    sessions.clear()
    trials = verifier.trials(model)
    assert trials.check(dict.fromkeys(keys, CHANGED["v"])) == expected
    assert not any(each.given for each in sessions)
    trials.check({"w": CHANGED["w"]})
    assert sessions[-1].given


def test_only_what_comes_after_a_change_runs(tmp_path: Path, sessions: list[Opened]) -> None:
    model = model_of(CHAIN)
    trials = Verifier(model, opened(model, tmp_path, x=X), target=CPU).trials(model)
    trials.check({"v": CHANGED["v"]})
    assert sessions[-1] == Opened(("MatMul",), frozenset({"b"}), frozenset({"v"}))
    trials.check({"w": CHANGED["w"]})
    assert sessions[-1].operators == ("MatMul", "Relu", "MatMul")
    before = len(sessions)
    trials.check({"w": CHANGED["w"], "v": CHANGED["v"]})
    assert sessions[-1].operators == ("MatMul", "Relu", "MatMul") and len(sessions) == before + 1
    trials.check(CHANGED)
    assert sessions[-1] == Opened(("MatMul", "Relu", "MatMul", "Relu", "MatMul"), frozenset("x"), frozenset("uwv"))


def test_outputs_that_nothing_changed_are_not_computed_again(tmp_path: Path, sessions: list[Opened]) -> None:
    text = CHAIN.replace("(float[N,5] y)", "(float[N,5] y, float[N,8] r, float[N,6] a)")
    model = model_of(text)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    expected = verifier.check(changed(text, {"v": CHANGED["v"]}))
    assert_same(verifier.trials(model).check({"v": CHANGED["v"]}), expected)
    assert sessions[-1].operators == ("MatMul",)
    assert {each.name for each in expected.outputs} == {"y", "r", "a"}


@pytest.mark.parametrize("room", [0, 120 * 6 * 4, 2**20])
def test_what_is_kept_stays_within_the_room(
    tmp_path: Path, sessions: list[Opened], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """120 samples of 6 floats before ``v``, of 8 before ``w``."""
    keep = functools.partial(under_test.keep_activations, room=room)
    monkeypatch.setattr(under_test, "keep_activations", keep)
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    trials = verifier.trials(model)
    for name, kept in (("v", room > 0), ("w", room > 120 * 6 * 4)):
        assert_same(trials.check({name: CHANGED[name]}), verifier.check(changed(CHAIN, {name: CHANGED[name]})))
        trials.check({name: CHANGED[name]})
        assert (sessions[-1].inputs != {"x"}) is kept


def test_labels_are_watched_and_counted(tmp_path: Path, sessions: list[Opened]) -> None:
    text = CHAIN.replace("float[N,5] y", "int64[N,1] y").replace("y = MatMul(b, v)", "z = MatMul(b, v) y = ArgMax(z)")
    text = text.replace("ArgMax(", "ArgMax<axis = 1>(")
    model = model_of(text)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    for names in ("v", "u"):
        expected = verifier.check(changed(text, {each: CHANGED[each] for each in names}))
        sessions.clear()
        assert_same(verifier.trials(model).check({each: CHANGED[each] for each in names}), expected)
        assert "z (into ArgMax)" in {each.name for each in expected.outputs}
        assert all(each.given for each in sessions)


def test_accuracy_by_labels_of_the_data(tmp_path: Path) -> None:
    model = model_of(CHAIN)
    wanted = np.asarray(Session(model.to_bytes()).run({"x": X})["y"]).argmax(axis=1)
    verifier = Verifier(model, opened(model, tmp_path, x=X, labels=wanted), target=CPU)
    assert verifier.metric == "accuracy"
    zeros = np.zeros_like(WEIGHTS["v"])
    expected = verifier.check(changed(CHAIN, {"v": zeros}))
    assert verifier.trials(model).check({"v": zeros}) == expected and expected.divergence > 0.2


def test_a_score_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: list[Opened]) -> None:
    (tmp_path / "of_trials.py").write_text(
        "import numpy as np\ndef score(run):\n    return float(run({'x': np.ones((1, 8), np.float32)})['y'].sum())\n"
    )
    monkeypatch.chdir(tmp_path)
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU, metric="of_trials:score")
    expected = verifier.check(changed(CHAIN, {"v": 2 * WEIGHTS["v"]}))
    sessions.clear()
    assert verifier.trials(model).check({"v": 2 * WEIGHTS["v"]}) == expected
    assert sessions[0].given


def test_a_model_goes_on_from_its_own_state(tmp_path: Path, sessions: list[Opened]) -> None:
    text = """g (float[N,8] x, float[N,8] h) => (float[N,5] y, float[N,8] hn) {
        a = MatMul(x, u) d = MatMul(h, k) s = Add(a, d) hn = Tanh(s) b = MatMul(hn, w) y = MatMul(b, v) }"""
    weights_too = {**WEIGHTS, "k": np.eye(8, dtype=np.float32) / 2}
    model = model_of(text, weights_too)
    x, h = (RNG.standard_normal((256, 8)).astype(np.float32) for _ in range(2))
    verifier = Verifier(model, opened(model, tmp_path, x=x, h=h), target=CPU)
    assert verifier.states == {"hn"}
    values = {"k": weights_too["k"] * np.float32(1.001)}
    expected = verifier.check(model_of(text, {**weights_too, **values}))
    assert any(each.measure.startswith("on its own states") for each in expected.outputs)
    sessions.clear()
    assert_same(verifier.trials(model).check(values), expected)
    assert all(each.given for each in sessions)


def test_models_that_draw_are_written(tmp_path: Path, sessions: list[Opened]) -> None:
    text = CHAIN.replace("b = Relu(a)", "n = RandomNormalLike(a) b = Add(a, n)")
    model = seeded(model_of(text))
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    expected = verifier.check(with_arrays(model, {"v": CHANGED["v"]}))
    assert verifier.trials(model).check({"v": CHANGED["v"]}) == expected
    assert not any(each.given for each in sessions)


def test_large_models_run_in_a_process_of_their_own(
    tmp_path: Path, sessions: list[Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    for module in ("candidate", "trials"):
        monkeypatch.setattr(f"onnxcomp.verify.{module}.ISOLATE_FROM_BYTES", 1)
    sessions.clear()
    expected = verifier.check(changed(CHAIN, {"v": CHANGED["v"]}))
    assert verifier.trials(model).check({"v": CHANGED["v"]}) == expected
    assert not sessions and "process of its own" in verifier.notes[-1]


def test_compact_weights_are_given_as_what_their_decoders_make(tmp_path: Path, sessions: list[Opened]) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.integers(-2, 3, (64, 64)).astype(np.float32) / 16 for name in "uwv"}
    text = CHAIN.replace("[N,8]", "[N,64]").replace("[N,5]", "[N,64]")
    plain = model_of(text, values)
    model, _ = apply_pass(plain, get_pass("store-compact")(), Context())
    assert not {"u", "w", "v"} & {each.name for each in model.proto.graph.initializer}
    data = opened(plain, tmp_path, x=rng.standard_normal((40, 64)).astype(np.float32))
    verifier = Verifier(plain, data, target=CPU)
    keys = [each.name for each in weights(open_plain(model))]
    assert len(keys) == 3
    sessions.clear()
    for at, (key, name) in enumerate(zip(keys, "uwv", strict=True)):
        more = values[name] * np.float32(1 + 0.01 * at)
        expected = verifier.check(model_of(text, {**values, name: more}))
        assert_same(verifier.trials(model).check({key: more}), expected)
    assert any(each.given for each in sessions)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"v": WEIGHTS["v"].T}, r"v: \(5, 6\) float32 for \(6, 5\) float32"),
        ({"v": WEIGHTS["v"].astype(np.float64)}, "v: .* float64 for .* float32"),
        ({"nothing": WEIGHTS["v"]}, "nothing: the model has no such constant"),
    ],
)
def test_refuses_values_that_no_weight_can_hold(tmp_path: Path, values: Arrays, said: str) -> None:
    model = model_of(CHAIN)
    with pytest.raises(ValueError, match=said):
        Verifier(model, opened(model, tmp_path, x=X), target=CPU).trials(model).check(values)


def test_values_that_break_the_model_fail(tmp_path: Path) -> None:
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    infinite = np.full_like(WEIGHTS["v"], np.inf)
    found = verifier.trials(model).check({"v": infinite})
    assert found == verifier.check(changed(CHAIN, {"v": infinite}))
    assert found.failed and "NaN or infinite" in found.reasons[0]
    other = model_of(CHAIN.replace("float[N,5] y", "float[M,5] y"))
    assert verifier.trials(other).check({"v": CHANGED["v"]}).failed


def test_threads_get_the_verdicts_of_one(tmp_path: Path) -> None:
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    changes = [{name: CHANGED[name] * np.float32(factor) for name in names} for factor in range(8)
               for names in ("u", "w", "v", "wv", "uwv")]  # fmt: skip
    alone = [verifier.trials(model).check(each) for each in changes]
    trials = verifier.trials(model)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(trials.check, changes)) == alone


def test_what_is_held_goes_when_nobody_asks_any_more(tmp_path: Path) -> None:
    model = model_of(CHAIN)
    verifier = Verifier(model, opened(model, tmp_path, x=X), target=CPU)
    trials = verifier.trials(model)
    trials.check({"v": CHANGED["v"]})
    assert verifier.trials(model) is trials
    held = weakref.ref(trials._ready())
    del trials
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("proto", draw_models(20, seed=5))
def test_any_model(proto: ModelProto) -> None:
    model = load(proto)
    inputs = Session(model.to_bytes()).inputs
    feeds = [feeds_for(proto, seed) for seed in range(2)]
    groups = tuple(Group(str(i), functools.partial(dict, each), WHOLE) for i, each in enumerate(feeds))
    order = np.array([[0, 0], [1, 0]], np.int64)
    data = CalibrationData(source="the test", inputs=inputs, groups=groups, order=order)
    verifier = Verifier(model, data, target=CPU)
    trials = verifier.trials(model)
    found = weights(open_plain(model))
    noise = np.random.default_rng(0)
    values = {each.name: noisy(noise, each.values) for each in found}
    for chosen in [*([name] for name in values), list(values)]:
        some = {name: values[name] for name in chosen}
        assert_same(trials.check(some), verifier.check(with_arrays(model, some)))


def noisy(noise: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return (np.asarray(values, np.float64) * (1 + 0.05 * noise.standard_normal(values.shape))).astype(values.dtype)
