"""What samples show of a weight: probed hard, with few samples first, and by each output alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights, with_arrays
from onnxcomp.model import Model, load
from onnxcomp.pipeline.safety import reach as safety_reach
from onnxcomp.pipeline.safety.gradient_reach import LEAST_WEIGHTS
from onnxcomp.pipeline.safety.reach import (
    FEW,
    LARGE_QUICK_SAMPLES,
    QUICK_SAMPLES,
    TURNED_ERROR,
    Reach,
    affected_share,
    largest_move,
    unreached_note,
)
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Table, WeightOption
from onnxcomp.pipeline.weight_search.sensitivity import measure_influence
from onnxcomp.target import Target
from onnxcomp.verify import OutputDivergence, Verdict, Verifier
from tests.pipeline.weight_search.fits import put_in

Judge = Callable[..., Verifier]
CPU = Target.of("cpu")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 12)).astype(np.float32)
STREAM = "g (float[N,12] x, float[N,9] z) => (float[N,8] y) { a = MatMul(x, wx) b = MatMul(z, wz) y = Add(a, b) }"
# y = x W + Relu(-|x| D) is x W, and so it is without D; turned round, D shows.
DEAD = """g (float[N,12] x) => (float[N,8] y) {
    a = MatMul(x, w) b = Abs(x) c = Neg(b) d = MatMul(c, dead) e = Relu(d) y = Add(a, e) }"""


def parsed(text: str, **values: np.ndarray) -> Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in values.items())
    return load(proto)


def matrix(rows: int, columns: int = 8) -> np.ndarray:
    return RNG.standard_normal((rows, columns)).astype(np.float32)


def stream() -> Model:
    return parsed(STREAM, wx=matrix(12), wz=matrix(9))


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Judges a model on these inputs."""

    def make(model: Model, **inputs: np.ndarray) -> Verifier:
        np.savez(tmp_path / "c.npz", **inputs)
        with model.opened_on(CPU.session) as session:
            data = CalibrationData.open(tmp_path / "c.npz", session.inputs, run=session.run)
        return Verifier(model, data, target=CPU)

    return make


def counted(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples of every check from now on."""
    checks: list[int] = []
    check = Verifier.check

    def counting(self: Verifier, model: Model) -> Verdict:
        checks.append(self.samples)
        return check(self, model)

    monkeypatch.setattr(Verifier, "check", counting)
    return checks


def test_the_weight_of_an_input_that_is_zero_is_unreached(judge: Judge) -> None:
    model = stream()
    silent = Reach(judge(model, x=X, z=np.zeros((96, 9), np.float32)))
    assert silent.unreached(model, ["wx", "wz"]) == {"wz"}
    assert silent.influence(model, "wz") == 0 < silent.influence(model, "wx")
    moving = Reach(judge(model, x=X, z=X[:, :9]))
    assert moving.unreached(model, ["wx", "wz"]) == set()


ZEROS = """g (float[3,1,12] x) => (float[1,1,4] y) { h, y = GRU<hidden_size = 4>(x, w, r, , , state) }"""


@pytest.mark.parametrize(
    ("steps", "scale", "unreached"),
    [
        (3, 1, set()),
        (1, 1, {"r", "state"}),  # what goes by the state is not seen in one step
        (3, 0, {"w", "r", "state"}),
    ],
)
def test_for_zeros_tells_what_their_node_reads_beside_them(
    judge: Judge, steps: int, scale: float, unreached: set[str]
) -> None:
    values = {"w": matrix(12, 12)[None], "r": matrix(12, 4)[None], "state": np.zeros((1, 1, 4), np.float32)}
    model = parsed(ZEROS.replace("3", str(steps), 1), **values)
    x = scale * RNG.standard_normal((96, steps, 1, 12)).astype(np.float32)
    assert Reach(judge(model, x=x.astype(np.float32))).unreached(model, ["w", "r", "state"]) == unreached


def test_for_repeated_zeros_tells_what_reads_the_repetition(judge: Judge) -> None:
    text = ZEROS.replace("{ h", "{ first = Expand(state, sizes) h").replace(", state)", ", first)")
    values = {"w": matrix(12, 12)[None], "r": matrix(12, 4)[None], "state": np.zeros((1, 1, 4), np.float32)}
    model = parsed(text, **values, sizes=np.array([1, 1, 4]))
    x = RNG.standard_normal((96, 3, 1, 12)).astype(np.float32)
    assert Reach(judge(model, x=x)).unreached(model, ["state"]) == set()
    assert Reach(judge(model, x=0 * x)).unreached(model, ["state"]) == {"state"}


def test_zeros_alone_are_unreached(judge: Judge) -> None:
    model = parsed(STREAM, wx=matrix(12), wz=np.zeros((9, 8), np.float32))
    assert Reach(judge(model, x=X, z=X[:, :9])).unreached(model, ["wz"]) == {"wz"}


def test_a_weight_whose_loss_shows_nothing_is_turned_round_before_it_counts_as_unreached(judge: Judge) -> None:
    model = parsed(DEAD, w=matrix(12), dead=np.abs(matrix(12)))
    tuner = judge(model, x=X)
    found = Reach(tuner).influence(model, "dead")
    turned = parsed(DEAD, w=initial(model, "w"), dead=-initial(model, "dead"))
    assert found == pytest.approx(tuner.check(turned).quadratic_divergence / TURNED_ERROR)


def initial(model: Model, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(each) for each in model.proto.graph.initializer if each.name == name)


def test_what_few_samples_do_not_show_is_tried_on_all(judge: Judge) -> None:
    model = stream()
    late = np.zeros((96, 9), np.float32)
    late[QUICK_SAMPLES:] = 1
    assert Reach(judge(model, x=X, z=late)).unreached(model, ["wz"]) == set()


def test_a_weight_is_tried_once_and_on_few_samples_where_these_show_it(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stream()
    reach = Reach(judge(model, x=X, z=X[:, :9]))
    checks = counted(reach.tuner, monkeypatch)  # type: ignore[arg-type]
    reach.unreached(model, ["wx", "wz"])
    assert checks == [QUICK_SAMPLES] * 3  # the model as it is, and each weight gone
    reach.unreached(model, ["wx", "wz"])
    assert len(checks) == 3


def deep(count: int) -> Model:
    nodes = " ".join(f"t{at + 1} = MatMul(t{at}, w{at})" for at in range(count))
    text = f"g (float[N,12] t0) => (float[N,12] t{count}) {{ {nodes} }}"
    return parsed(text, **{f"w{at}": matrix(12, 12) / 4 for at in range(count)})


def test_many_weights_are_judged_by_the_part_behind_each(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep(4 * FEW)
    names = [f"w{at}" for at in range(4 * FEW)]
    reach = Reach(judge(model, t0=X))
    checks = counted(reach.tuner, monkeypatch)  # type: ignore[arg-type]
    assert reach.unreached(model, names) == set()
    assert len(checks) == 1 + FEW, "the model as it is and the first few are run as a whole"
    assert reach._looks is None, "what was kept for that is let go"
    alone = Reach(judge(model, t0=X))
    for name in names[-3:]:  # nothing is kept between these
        quick = alone._few_samples()[0]
        found = alone._tried(model, next(each for each in weights(open_plain(model)) if each.name == name), quick)
        assert reach._known[name, (12, 12)] == pytest.approx(found, rel=1e-4)


def test_of_a_large_model_fewer_samples_are_tried_first(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stream()
    monkeypatch.setattr(safety_reach, "LARGE_BYTES", 0)
    reach = Reach(judge(model, x=X, z=X[:, :9]))
    checks = counted(reach.tuner, monkeypatch)  # type: ignore[arg-type]
    assert reach.unreached(model, ["wx", "wz"]) == set()
    assert checks == [LARGE_QUICK_SAMPLES] * 3
    (quick,) = reach._few_samples()
    assert quick.target.optimization == "basic" and reach.tuner is not None
    assert reach.tuner.target.optimization == "all", "what decides runs as it will"


# Of two branches, one is never taken and one is divided by its own size: scaling its weight changes nothing.
BRANCHES = """g (float[N,12] x) => (float[N,12] y) { CHAIN
    n = MatMul(a, scaled) q = ReduceL2<axes = [1], keepdims = 1>(n) r = Div(n, q) b = Add(a, r)
    o = Neg(p) c = Relu(o) d = MatMul(c, closed) y = Add(b, d) }"""


def branches() -> Model:
    chain = " ".join(f"t{at} = MatMul({f't{at - 1}' if at else 'x'}, w{at})" for at in range(LEAST_WEIGHTS))
    chain += f" a = Tanh(t{LEAST_WEIGHTS - 1}) p = Abs(a)"
    names = [*(f"w{at}" for at in range(LEAST_WEIGHTS)), "scaled", "closed"]
    return parsed(BRANCHES.replace("CHAIN", chain), **{name: matrix(12, 12) / 4 for name in names})


def test_of_a_large_model_one_backward_pass_tells_of_most_weights(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = branches()
    names = [each.name for each in weights(open_plain(model))]
    tuner = judge(model, x=X)
    by_runs = Reach(tuner).unreached(model, names)
    monkeypatch.setattr(safety_reach, "LARGE_BYTES", 0)
    reach = Reach(tuner)
    asked: list[str] = []
    tried = Reach._is_seen

    def trying(self: Reach, model: Model, weight: Weight, judges: list[Verifier]) -> bool:
        asked.append(weight.name)
        return tried(self, model, weight, judges)

    monkeypatch.setattr(Reach, "_is_seen", trying)
    assert reach.unreached(model, names) == by_runs == {"closed"}
    assert asked == ["closed"], "what has no gradient is changed and run as before"
    checks = counted(tuner, monkeypatch)
    assert reach.unreached(model, names) == {"closed"} and not checks, "each weight is asked for once"


def test_where_no_gradient_can_be_told_each_weight_is_tried(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Sign goes no gradient, and values on both sides of zero show."""
    model = deep(LEAST_WEIGHTS)
    model.proto.graph.node[-1].output[0] = "before"
    model.proto.graph.node.add(op_type="Sign", input=["before"], output=[f"t{LEAST_WEIGHTS}"])
    monkeypatch.setattr(safety_reach, "LARGE_BYTES", 0)
    reach = Reach(judge(load(model.proto), t0=X))
    assert reach.unreached(reach.tuner.original, [f"w{at}" for at in range(LEAST_WEIGHTS)]) == set()  # type: ignore[union-attr]
    assert not reach._reached and len(reach._known) == LEAST_WEIGHTS


def test_without_a_judge_nothing_is_reached() -> None:
    assert Reach(None).unreached(stream(), ["wx", "wz"]) == {"wx", "wz"}


def verdict_of(share: float | None = None, measure: str = "values", **values: float) -> Verdict:
    outputs = tuple(OutputDivergence(name, "values", measure, each, each, each) for name, each in values.items())
    found = Verdict(divergence=max(values.values()), interval=(0, 1), limit=0.03, samples=9, outputs=outputs)
    if share is not None:
        object.__setattr__(found, "affected_share", share)
    return found


def test_the_worst_output_hides_no_other() -> None:
    assert largest_move(verdict_of(a=0.02, b=0.0), verdict_of(a=0.02, b=0.01)) == pytest.approx(0.01)


def test_what_only_a_closed_loop_shows_does_not_count_as_reached() -> None:
    """Its first steps may run what no sample does, and are soon diluted."""
    before, after = (verdict_of(measure="on its own states: values", a=value) for value in (0.0, 0.02))
    assert largest_move(before, after) == 0.0


def test_one_of_few_labels_that_flips_tells_no_share_of_samples() -> None:
    assert affected_share(verdict_of(0.1, a=0.02)) == 0.1
    assert affected_share(verdict_of(0.1, "labels", a=0.02)) is None
    assert affected_share(verdict_of(a=0.02)) is None


@dataclasses.dataclass
class Scripted:
    """A judge that knows each model's verdict."""

    verdicts: Callable[[Model], Verdict]
    search_limit: float = 0.03
    limit: float = 0.03
    samples: int = 9

    def check(self, model: Model) -> Verdict:
        return self.verdicts(model)

    def trials(self, model: Model) -> SimpleNamespace:
        return SimpleNamespace(check=lambda values: self.verdicts(with_arrays(model, values)))


PLAIN = WeightOption(None, 1000, 0.0)


def influenced(alone: Verdict, all_together: Verdict, option: WeightOption) -> Table:
    """The table of a weight after it was measured alone, and once with another one."""
    model, changed = stream(), stream()
    table = Table({name: [PLAIN, option] for name in ("wx", "wz")})
    for choice, made in ((0, changed), (9, stream())):
        put_in(table, choice, made, ("wx", "wz"))

    def verdicts(candidate: Model) -> Verdict:
        new = [np.array_equal(initial(candidate, name), initial(changed, name)) for name in ("wx", "wz")]
        return all_together if all(new) else alone if new[0] else verdict_of(a=0.001 * new[1])

    tuner: Verifier = Scripted(verdicts)  # type: ignore[assignment]
    mild = dict.fromkeys(("wx", "wz"), WeightOption(9, 400, 1e-5))
    measure_influence(model, table, tuner, Reach(tuner), mild, Context(), tolerable=0.03)
    return table


@pytest.mark.parametrize(("share", "usual", "stays"), [(0.1, 0.8, False), (0.2, 0.8, True), (0.1, 0.1, True)])
def test_what_few_samples_see_must_be_bearable_to_these(share: float, usual: float, stays: bool) -> None:
    """0.005 over all samples is 0.04 for an eighth of those that see anything, 0.02 for a quarter."""
    table = influenced(verdict_of(share, a=0.005), verdict_of(usual, a=0.001), WeightOption(0, 200, 0.01))
    assert [each.choice for each in table.options["wx"]] == [None, 0][: 1 + stays]


def test_an_unreached_weight_keeps_to_what_is_safe_without_data() -> None:
    silent = verdict_of(a=0.0)
    table = influenced(silent, silent, WeightOption(0, 200, 0.01))
    assert table.unreached == {"wx"}
    assert [each.choice for each in table.options["wx"]] == [None, 9]


def test_a_weight_that_a_small_change_does_not_show_is_known_by_its_loss() -> None:
    def verdicts(candidate: Model) -> Verdict:
        return verdict_of(a=0.0 if initial(candidate, "wx").any() else 0.5)

    tuner: Verifier = Scripted(verdicts)  # type: ignore[assignment]
    table = Table({"wx": [PLAIN, WeightOption(0, 200, 0.01)]})
    put_in(table, 0, stream(), ["wx"])
    measure_influence(stream(), table, tuner, Reach(tuner), {"wx": PLAIN}, Context())
    assert table.influence["wx", ANY_FAMILY] == pytest.approx(0.5)
    assert table.predicted("wx", table.options["wx"][1]) == pytest.approx(0.005)


def test_a_note_names_three_weights_at_most() -> None:
    assert unreached_note(["w"], "kept at 8 bits") == "w: no sample reaches it; kept at 8 bits"
    assert unreached_note("edcba", "left as before") == "a, b, c and 2 more: no sample reaches them; left as before"
