"""Which loss each output gets, by what the original gives."""

import numpy as np
import onnx

from onnxcomp.model import Model, load
from onnxcomp.training.loss.matching import Matching, scores_behind
from onnxcomp.training.loss.terms import ChanceTerm, ClassTerm, LossTerm, ValueTerm, VectorTerm

RNG = np.random.default_rng(2)


def model(body: str, opset: int = 17) -> Model:
    return load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {body}'))


LINEAR = model(
    """g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w = {1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1}>
    { y = MatMul(x, w) }"""
)


def terms(of: Model, outputs: dict[str, np.ndarray], **asked: object) -> list[LossTerm]:
    return Matching(**asked).terms(of, of, [outputs], [], True)  # type: ignore[arg-type]


def test_class_scores_get_kl_softened_until_the_original_is_unsure() -> None:
    scores = RNG.normal(0, 12, (200, 4)).astype(np.float32)
    term, values = terms(LINEAR, {"y": scores})
    assert isinstance(term, ClassTerm) and term.temperature > 1 and term.student == "y"
    assert isinstance(values, ValueTerm) and values.weight < term.weight
    assert terms(LINEAR, {"y": scores}, temperature=1.5)[0].temperature == 1.5  # type: ignore[attr-defined]


def test_softmax_is_trained_before_it() -> None:
    ends = model(
        """g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w = {1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1}>
        { s = MatMul(x, w) y = Softmax(s) }"""
    )
    scores = RNG.normal(0, 2, (200, 4))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    (term,) = terms(ends, {"y": chances.astype(np.float32)})
    assert isinstance(term, ClassTerm)
    assert (term.student, term.form, term.teacher_form) == ("s", "logits", "probability")


def test_a_softmax_over_other_axes_is_left_alone() -> None:
    body = "g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Softmax<axis = 1>(x) }"
    assert scores_behind(model(body).proto.graph, 17, "y", 2, 3) is None
    assert scores_behind(model(body).proto.graph, 17, "y", 1, 3) == "x"
    assert scores_behind(model(body, 11).proto.graph, 11, "y", 1, 3) is None  # it flattens what comes after


def test_values_get_squared_error_and_vectors_their_angle_too() -> None:
    values = (RNG.normal(0, 1, (200, 2)) * [1.0, 100.0] + [5.0, 0.0]).astype(np.float32)
    two = model("g (float[N, 2] x) => (float[N, 2] y) { y = Identity(x) }")
    (term,) = terms(two, {"y": values}, asked={"y": "values"})
    assert isinstance(term, ValueTerm)
    np.testing.assert_allclose(term.spread.reshape(-1), values.std(axis=0), rtol=1e-3)
    wide = model("g (float[N, 64] x) => (float[N, 64] y) { y = Tanh(x) }")
    found = terms(wide, {"y": RNG.normal(0, 1, (200, 64)).astype(np.float32)}, asked={"y": "embedding"})
    assert [type(each) for each in found] == [ValueTerm, VectorTerm]


def test_chances_get_a_divergence_of_their_own() -> None:
    chances = 1 / (1 + np.exp(-RNG.normal(0, 6, (300, 5)))).astype(np.float32)
    five = model("g (float[N, 5] x) => (float[N, 5] y) { y = Sigmoid(x) }")
    assert isinstance(terms(five, {"y": chances.astype(np.float32)}, asked={"y": "probabilities"})[0], ChanceTerm)


def test_the_user_s_word_and_the_asked_loss_count() -> None:
    scores = RNG.normal(0, 12, (200, 4)).astype(np.float32)
    assert isinstance(terms(LINEAR, {"y": scores}, loss="mse")[0], ValueTerm)
    assert isinstance(terms(LINEAR, {"y": scores}, loss="cosine")[0], VectorTerm)
    assert terms(LINEAR, {"y": scores}, asked={"y": "ignore"}) == []


def test_inner_tensors_are_those_of_both_models_under_one_name() -> None:
    deep = """g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) d = Relu(c) y = MatMul(d, w) }"""
    one, other = model(deep), model(deep.replace("c", "k"))
    always = lambda name: True  # noqa: E731
    assert Matching(inner=1.0).inner_names(one, one, always) == ["a", "c"]
    assert Matching(inner=1.0).inner_names(one, other, always) == ["a"]
    assert Matching(inner=1.0).inner_names(one, one, lambda name: name != "a") == ["c"]
    assert Matching(inner=1.0, which=("b", "missing")).inner_names(one, one, always) == ["b"]
    assert Matching().inner_names(one, one, always) == []
