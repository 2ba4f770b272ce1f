"""Weights trained towards the original: they come nearer, and keep what they were made of."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.data.sample_axes import Cut
from onnxcomp.contract import Context, Outcome
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import close_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.stored.opening import is_stored, open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load, save
from onnxcomp.numerics.encodings.encoding import CodebookEncoding, Encoding, GridEncoding, MaskEncoding
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.training import engines
from onnxcomp.training.backward.engine import BackwardEngine
from onnxcomp.training.engine import NoGradientError
from onnxcomp.training.optimization import loop
from onnxcomp.training.setup import TrainingSetup

STEPS, RATE = 250, 0.03
RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 6)).astype(np.float32)
W1, W2 = (RNG.normal(0, 0.6, shape).astype(np.float32) for shape in ((6, 8), (8, 4)))
B1, B2 = (RNG.normal(0, 0.3, size).astype(np.float32) for size in (8, 4))


def network(w1: np.ndarray = W1, b1: np.ndarray = B1, *, body: str = "", ends: str = "Softmax(s)") -> Model:
    """Two layers."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 4] y) {{
        a = MatMul(x, w1) h = Add(a, b1) r = Relu(h) {body} c = MatMul(r, w2) s = Add(c, b2) y = {ends} }}"""
    proto = onnx.parser.parse_model(text)
    for name, values in (("w1", w1), ("b1", b1), ("w2", W2), ("b2", B2)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return load(proto)


ORIGINAL = network()


def samples(model: Model, values: np.ndarray = X, labels: np.ndarray | None = None, path: Path | None = None) -> Any:
    session = Session(model.to_bytes())
    if path is not None:
        extra = {} if labels is None else {"labels": labels}
        np.savez(path, x=values, **extra)
        return CalibrationData.open(path, session.inputs, run=session.run)
    return CalibrationData._of_feeds([{"x": values}], _cut(len(values)), session.inputs, 0)


def _cut(count: int) -> Any:
    return Cut({"x": 0}, count)


def data_of(model: Model, **options: Any) -> CalibrationData:
    return dataclasses.replace(samples(model, **options), is_random=False)


def trained(model: Model, original: Model = ORIGINAL, context: Any = None, **fields: Any) -> tuple[Model, Outcome]:
    options = {"target": Target.of(), "calibration": data_of(original), "reference": Reference(original)}
    options["training"] = TrainingSetup(engine="ort")
    options |= context or {}
    return apply_pass(model, get_pass("finetune")(**{"steps": STEPS, "rate": RATE, **fields}), Context(**options))


def with_values(model: Model, values: dict[str, np.ndarray], encodings: dict[str, Encoding] | None = None) -> Model:
    graph = open_plain(model)
    for weight in weights(graph):
        if weight.name in values:
            weight.set(values[weight.name], (encodings or {}).get(weight.name))
    return close_graph(graph)


def error(model: Model, original: Model = ORIGINAL) -> float:
    """Mean KL on samples that nobody has seen."""
    fresh = np.random.default_rng(9).normal(size=(500, 6)).astype(np.float32)
    p, q = (Session(each.to_bytes()).run({"x": fresh})["y"].astype(np.float64) for each in (original, model))
    return float((p * np.log(p / q)).sum(axis=1).mean())


def constant(model: Model, name: str) -> np.ndarray:
    return np.asarray(constants_by_key(open_plain(model))[name].values)


def pruned() -> Model:
    zeros = np.where(np.abs(W1) < np.quantile(np.abs(W1), 0.5), 0, W1).astype(np.float32)
    return with_values(ORIGINAL, {"w1": zeros}, {"w1": MaskEncoding(dtype="float32")})


def clustered(bits: int = 2) -> Model:
    values, encodings = {}, {}
    for name, own in (("w1", W1), ("w2", W2)):
        book = np.quantile(own, (np.arange(2**bits) + 0.5) / 2**bits).astype(np.float32)
        encodings[name] = CodebookEncoding(dtype="float32", codebook=book)
        values[name] = encodings[name].decode(encodings[name].nearest(own), own.shape)
    return with_values(ORIGINAL, values, encodings)


def ternary() -> Model:
    scale = np.abs(W1).mean(axis=0, keepdims=True)
    encoding = GridEncoding(dtype="float32", levels=3, zero_point=np.asarray(1, np.uint8), scale=scale, axis=1)
    return with_values(ORIGINAL, {"w1": encoding.decode(encoding.nearest(W1), W1.shape)}, {"w1": encoding})


def test_a_wrong_weight_is_found_again() -> None:
    wrong = network(W1 + RNG.normal(0, 0.3, W1.shape).astype(np.float32))
    after, outcome = trained(wrong)
    assert error(after) < 0.02 * error(wrong)
    assert {each.name for each in outcome.changed} == {"w1", "w2", "b1", "b2"}
    details = outcome.changed[0].details
    assert details["loss_after"] < 0.05 * details["loss_before"]


def test_zeros_stay_and_the_others_make_up_for_them() -> None:
    before = pruned()
    after, _ = trained(before)
    assert error(after) < 0.6 * error(before)
    np.testing.assert_array_equal(constant(after, "w1") == 0, constant(before, "w1") == 0)
    assert isinstance(after.encodings["w1"], MaskEncoding)


@pytest.mark.parametrize("rounding", ["fixed", "straight-through", "blend", "adaround"])
def test_a_clustered_weight_keeps_its_codebook_in_every_way_of_rounding(rounding: str) -> None:
    before = clustered()
    after, _ = trained(before, rounding=rounding)
    assert error(after) < 0.8 * error(before)
    for name in ("w1", "w2"):
        encoding, values = after.encodings[name], constant(after, name)
        assert encoding.level_count == 4 and len(np.unique(values)) <= 4
        codes = encoding.encode(values)
        assert codes is not None and encoding.decode(codes, values.shape).tobytes() == values.tobytes()
        if rounding == "fixed":
            old = constant(before, name)
            for level in np.unique(old):
                assert len(np.unique(values[old == level])) == 1


def test_a_grid_stays_a_grid_and_learns_its_scales() -> None:
    before = ternary()
    after, _ = trained(before)
    assert error(after) < 0.7 * error(before)
    values, encoding = constant(after, "w1"), after.encodings["w1"]
    assert isinstance(encoding, GridEncoding) and encoding.encode(values) is not None
    for column in values.T:
        assert len(np.unique(np.abs(column[column != 0]))) <= 1
    assert not np.array_equal(encoding.scale, before.encodings["w1"].scale)  # type: ignore[attr-defined]


def test_levels_that_were_chosen_by_the_outputs_are_not_chosen_anew() -> None:
    """Inputs of which one half repeats the other: R goes from one half of the weights to the other and nothing is
    lost, though no value has the level nearest to the original's."""
    rng = np.random.default_rng(8)
    codes, moved = rng.integers(-1, 2, (6, 8)).astype(np.float32), rng.normal(0, 0.8, (3, 8)).astype(np.float32)
    original = network(codes + np.concatenate([moved, -moved]))
    scale = np.ones((1, 8), np.float32)
    grid = GridEncoding(dtype="float32", levels=3, zero_point=np.asarray(1, np.uint8), scale=scale, axis=1)
    rounded = with_values(network(codes, B1 + 0.1), {"w1": codes}, {"w1": grid})
    x = np.concatenate([X[:, :3], X[:, :3]], axis=1)
    data = dataclasses.replace(samples(original, values=x), is_random=False)
    after, outcome = trained(rounded, original, {"calibration": data}, steps=60)
    wanted, before, now = (Session(each.to_bytes()).run({"x": x})["y"] for each in (original, rounded, after))
    assert np.abs(now - wanted).sum() < 0.5 * np.abs(before - wanted).sum()
    assert outcome.changed[0].details["loss_before"] < 0.2  # of the model as it is


def test_it_is_stored_in_as_many_bytes_as_before() -> None:
    store = get_pass("store-compact")()
    sizes = []
    for model in (clustered(), trained(clustered())[0]):
        sizes.append(apply_pass(model, store, Context(target=Target.of()))[0].size_bytes)
    assert sizes[0] == sizes[1]


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads() -> None:
    wrong = pruned()
    first, again, threads = (trained(wrong, context={"jobs": jobs})[0].to_bytes() for jobs in (1, 1, 2))
    assert first == again == threads
    assert trained(wrong, context={"seed": 5})[0].to_bytes() != first


def test_what_is_excluded_stays() -> None:
    after, outcome = trained(pruned(), context={"exclude": ("w2", "b*")})
    assert {each.name for each in outcome.changed} == {"w1"}
    for name in ("w2", "b1", "b2"):
        np.testing.assert_array_equal(constant(after, name), constant(ORIGINAL, name))


def test_biases_are_left_alone_on_request() -> None:
    assert {each.name for each in trained(pruned(), biases=False)[1].changed} == {"w1", "w2"}


def test_without_the_model_from_before_nothing_is_done() -> None:
    after, outcome = trained(ORIGINAL)
    assert after is ORIGINAL and "nothing was lost before" in outcome.skipped[0].reason


def test_too_few_samples_are_said() -> None:
    data = data_of(ORIGINAL, values=X[:8])
    _, outcome = trained(pruned(), context={"calibration": data})
    assert not outcome.changed and outcome.skipped[0].reason.startswith("8 samples are too few")


def test_what_brings_the_model_no_nearer_is_left_out() -> None:
    measured: list[Model] = []

    def divergence(model: Model) -> float:
        measured.append(model)
        return float(len(measured))  # the trained one is worse

    before = pruned()
    after, outcome = trained(before, context={"divergence": divergence})
    assert after is before and "no nearer" in outcome.skipped[0].reason
    np.testing.assert_array_equal(constant(before, "w1"), constant(pruned(), "w1"))


def test_training_samples_are_taken_before_those_to_calibrate_with() -> None:
    nothing = data_of(ORIGINAL, values=np.zeros((64, 6), np.float32))
    setup = TrainingSetup(engine="ort", data=data_of(ORIGINAL))
    before = pruned()
    after, _ = trained(before, context={"calibration": nothing, "training": setup})
    assert error(after) < 0.6 * error(before)


def test_labels_are_learned_where_they_are_asked_for(tmp_path: Path) -> None:
    labels = (X[:, 0] > 0).astype(np.int64)
    data = samples(ORIGINAL, labels=labels, path=tmp_path / "labelled.npz")
    before = pruned()
    right = []
    for weight in (0.0, 100.0):
        after, _ = trained(before, context={"calibration": data}, labels=weight, steps=300)
        right.append(float((Session(after.to_bytes()).run({"x": X})["y"].argmax(axis=1) == labels).mean()))
    assert right[1] > right[0] + 0.2


def test_an_inner_tensor_can_be_matched() -> None:
    before = pruned()
    off = []
    for options in ({"inner": 0.0}, {"inner": 10.0, "inner_tensors": "h"}):
        after, _ = trained(before, **options)
        off.append(np.square(hidden(after) - hidden(ORIGINAL)).mean())
    assert off[1] < 0.9 * off[0]


def hidden(model: Model) -> np.ndarray:
    proto = onnx.ModelProto.FromString(model.to_bytes())
    proto.graph.output.append(onnx.ValueInfoProto(name="h"))
    return Session(proto.SerializeToString()).run({"x": X})["h"]


def test_one_bias_of_several_nodes_is_trained_as_one_and_can_be_untied() -> None:
    """Exporters merge equal initializers: three zero biases become one."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => (float[N, 6] y)
        { a = MatMul(x, w) h = Add(a, b) r = Relu(h) c = MatMul(r, v) y = Add(c, b) }"""

    def made(scale: float) -> Model:
        proto = onnx.parser.parse_model(text)
        w, v = (np.random.default_rng(seed).normal(0, 0.5, (6, 6)).astype(np.float32) for seed in (1, 2))
        for name, values in (("w", w * np.float32(scale)), ("v", v), ("b", np.zeros(6, np.float32))):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return load(proto)

    original, before = made(1.0), made(0.5)
    tied, outcome = trained(before, original)
    assert "as one for its 2 readers" in next(each.what for each in outcome.changed if each.name == "b")
    apart, outcome = trained(before, original, untie=True)
    names = {each.name for each in outcome.changed}
    assert len([name for name in names if name.startswith("b")]) == 2
    values = [constant(apart, name) for name in sorted(names) if name.startswith("b")]
    assert not np.array_equal(*values)
    assert "b_1" not in constants_by_key(open_plain(tied))


def test_a_step_that_does_not_fit_in_memory_is_refused_with_the_batch_that_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxcomp.training.step_memory.free_bytes", lambda: 15_000)
    _, outcome = trained(pruned())
    said = outcome.skipped[0].reason
    assert not outcome.changed and "32 samples at once" in said and "run_size=" in said
    fits = int(said.rsplit("run_size=", 1)[1].split(")")[0])
    assert 1 <= fits < 32
    assert trained(pruned(), run_size=fits)[1].changed


def stored_by(model: Model, folder: Path) -> Model:
    """The model as a later run reads it, its first weight behind a decoder."""
    stored = apply_pass(model, get_pass("store-compact")(), Context(target=Target.of()))[0]
    save(stored, folder / "stored.onnx")
    read = load(folder / "stored.onnx")
    assert not read.encodings
    assert is_stored(next(each.tensor for each in weights(open_plain(read)) if each.name == "w1"))
    return read


def wide() -> Model:
    """Two layers with 512 units between them: a first weight that is worth a decoder."""
    proto = onnx.ModelProto.FromString(ORIGINAL.to_bytes())
    rng, held = np.random.default_rng(7), {"w1": (6, 512), "b1": (512,), "w2": (512, 4), "b2": (4,)}
    del proto.graph.initializer[:]
    for name, shape in held.items():
        values = rng.normal(0, 0.6 if name == "w1" else 0.05, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return load(proto)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_what_another_run_stored_keeps_its_levels_or_is_left_alone(granularity: str, tmp_path: Path) -> None:
    original = wide()
    lossy = apply_pass(original, get_pass("cluster-weights")(bits=2.0, granularity=granularity), Context())[0]
    before = stored_by(lossy, tmp_path)
    after, outcome = trained(before, original, steps=60)
    w1, now = (weight_of(each, "w1") for each in (before, after))
    if granularity == "tensor":
        assert "w1" in {each.name for each in outcome.changed}
        assert np.unique(now).size == np.unique(w1).size == 4
        assert not np.array_equal(now, w1)
        again = apply_pass(after, get_pass("store-compact")(), Context(target=Target.of()))[0]
        assert again.size_bytes <= before.size_bytes + 64
    else:
        told = {each.name: each.reason for each in outcome.skipped}
        assert "levels differ from place to place" in told["w1"]
        np.testing.assert_array_equal(now, w1)


def weight_of(model: Model, name: str) -> np.ndarray:
    return next(np.asarray(each.values) for each in weights(open_plain(model)) if each.name == name)


def test_steps_are_settled_so_that_they_can_be_done_again() -> None:
    before = pruned()
    once, outcome = trained(before, steps=None, rate=None, epochs=30.0)
    assert outcome.settled["steps"] == 120 and 1e-4 < outcome.settled["rate"] < 0.1
    again, _ = trained(before, **outcome.settled)
    assert once.to_bytes() == again.to_bytes()


def test_a_killed_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WRITTEN_EVERY_S", -1.0)
    setup = TrainingSetup(engine="ort", checkpoints=tmp_path)
    whole, _ = trained(pruned(), batch_size=16)  # one run a step
    calls = 0
    original = BackwardEngine.loss_and_gradients

    def dying(self: Any, feeds: Any, values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        return original(self, feeds, values)

    monkeypatch.setattr(BackwardEngine, "loss_and_gradients", dying)
    with pytest.raises(KeyboardInterrupt):
        trained(pruned(), batch_size=16, context={"training": setup})
    after, _ = trained(pruned(), batch_size=16, context={"training": setup})
    assert calls == STEPS + 1
    assert after.to_bytes() == whole.to_bytes()


def test_an_operator_without_a_derivative_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is asked for must be able; else the pass leaves the model alone and says what would help."""
    monkeypatch.setattr(BackwardEngine, "unsupported", lambda model, loss, names: {"Frobnicate": "it has no rule"})
    monkeypatch.setattr(engines, "has_torch", lambda: False)
    with pytest.raises(NoGradientError, match=r"Frobnicate \(it has no rule\)"):
        trained(pruned())
    _, outcome = trained(pruned(), context={"training": TrainingSetup()})
    said = outcome.skipped[0].reason
    assert not outcome.changed and "Frobnicate" in said and "onnxcomp[train]" in said


def test_weights_that_a_gradient_reaches_are_trained_where_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def before_the_second(model: Model, loss: str, names: list[str]) -> dict[str, str]:
        return {} if set(names) <= {"w2", "b2"} else {"Frobnicate": "it has no rule"}

    monkeypatch.setattr(BackwardEngine, "unsupported", before_the_second)
    monkeypatch.setattr(engines, "has_torch", lambda: False)
    before = pruned()
    after, outcome = trained(before)
    assert {each.name for each in outcome.changed} == {"w2", "b2"}
    assert {each.name for each in outcome.skipped} == {"w1", "b1"}
    assert error(after) < error(before)
    np.testing.assert_array_equal(constant(after, "w1"), constant(before, "w1"))


def test_torch_is_named_where_it_is_asked_for_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_torch", lambda: False)
    with pytest.raises(ParameterError, match=r"onnxcomp\[train\]"):
        trained(pruned(), context={"training": TrainingSetup(engine="torch")})
