"""A second execution provider: what onnxcomp writes loads, agrees and is timed on OpenVINO.

`make test-openvino` runs this in an environment of its own, since onnxruntime-openvino takes onnxruntime's place. The
sessions here have no CPU provider to fall back to: a node that OpenVINO does not take fails the test. Times are
printed as ratios and never asserted.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.cli import main
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize
from onnxcomp.pipeline.api import Result
from onnxcomp.pipeline.costs import latency_ratio
from onnxcomp.pipeline.opening import open_data
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session, available_providers
from onnxcomp.target import Target, supported
from onnxcomp.verify import Verifier

PROVIDER = "OpenVINOExecutionProvider"
if PROVIDER not in available_providers():
    pytest.skip(
        f"this ONNX Runtime has no {PROVIDER}: `make test-openvino` installs one that has, beside this one",
        allow_module_level=True,
    )
STRICT = {"session.disable_cpu_ep_fallback": "1"}
MODELS = Path(__file__).parents[2] / "models"
DATA = {"lenet300": "mnist_calib.npz", "lenet5": "mnist_calib.npz", "basic_pitch": "basic_pitch_calib.npz"}
Step = tuple[str, Mapping[str, Any]]
PREPARED: tuple[Step, ...] = tuple(
    (name, {}) for name in ("fold-constants", "fuse-batch-norm", "fuse-pad", "lift-constants")
)
# The passes that lead to each form.
FORMS: dict[str, tuple[Step, ...]] = {
    "static QDQ": (("quantize-static", {}),),
    "weight-only": (("quantize-weights", {"bits": 8}), ("store-integers", {})),
    "codebook": (("cluster-weights", {"bits": 8.0}), ("store-compact", {})),
    "float16 weights": (("cast-float16", {"scope": "weights"}),),
    "float16": (("cast-float16", {"scope": "all"}),),
}
# basic_pitch has no product with a weight but its convolutions, which weight-only storage leaves alone; of static
# integers, the budget takes most back.
LEFT_OUT = {("basic_pitch", "weight-only"), ("basic_pitch", "static QDQ")}
CASES = [(model, form) for model in DATA for form in FORMS if (model, form) not in LEFT_OUT]
# Share of the largest value. OpenVINO requantizes between integer operators by its own rules, and the CPU provider
# rounds what it multiplies with weight-only integers to 8 bits; the rest is float rounding.
NEAR_CPU = {"static QDQ": 0.1, "weight-only": 0.02, "float16": 0.02}
ROUNDING = 2e-3


@cache
def target() -> Target:
    return Target.of("openvino")


def data_of(name: str, on: Target) -> CalibrationData:
    return open_data(load(MODELS / f"{name}.onnx"), str(MODELS / DATA[name]), on, 0)


@cache
def made(name: str, form: str) -> Result:
    """The model in one of the forms, as the pipeline leaves it: verified on OpenVINO, in part taken back if need be."""
    recipe = Recipe.of(*(get_pass(step)(**fields) for step, fields in (*PREPARED, *FORMS[form])), name=form)
    data = data_of(name, target())
    return optimize(MODELS / f"{name}.onnx", recipe=recipe, calibration=data, target=target(), measure=False)


def outputs(model: Model, name: str, **options: Any) -> dict[str, np.ndarray]:
    """The outputs for one calibration sample."""
    feeds = data_of(name, target()).first_sample()
    with model.opened_on(lambda source: Session(source, **options)) as session:
        return dict(session.run(feeds))


def assert_near(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], share: float) -> None:
    assert list(expected) == list(got)
    for key, value in expected.items():
        assert np.abs(got[key] - value).max() <= share * np.abs(value).max(), key


@pytest.mark.parametrize(("name", "form"), CASES)
def test_every_node_runs_on_openvino_within_the_budget(
    name: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = made(name, form)
    original = load(MODELS / f"{name}.onnx")
    last = next(step for step in reversed(result.receipt.steps) if step.changed)
    assert last.rewrite in {step for step, _ in FORMS[form]}, "the form was taken back"
    assert result.model.size_bytes < 0.8 * original.size_bytes
    verdict = Verifier(original, data_of(name, target()), target=target()).check(result.model)
    assert verdict.passed, verdict.reasons
    outputs(result.model, name, provider=PROVIDER, provider_options=target().provider_options, config=STRICT)
    ratio = latency_ratio(original, result.model, data_of(name, target()), target())
    with capsys.disabled():
        size = result.model.size_bytes / original.size_bytes
        print(f"\nopenvino {name} {form}: latency {ratio:.2f} and bytes {size:.3f} of the original's", end="")


@pytest.mark.parametrize(("name", "form"), CASES)
def test_openvino_computes_what_the_cpu_provider_does(name: str, form: str) -> None:
    model = made(name, form).model
    on_cpu = outputs(model, name)
    assert_near(on_cpu, outputs(model, name, provider=PROVIDER, config=STRICT), NEAR_CPU.get(form, ROUNDING))


def test_matmul_nbits_runs_on_openvino() -> None:
    """The operator that weight-only storage takes for the CPU provider is not lost on the other."""
    model = load(MODELS / "lenet300.onnx")
    steps = (("quantize-weights", {"bits": 4, "granularity": "block"}), ("store-integers", {}))
    recipe = Recipe.of(*(get_pass(step)(**fields) for step, fields in steps))
    result = optimize(model, recipe=recipe, calibration=data_of("lenet300", Target.of("cpu")), measure=False)
    assert any(node.op_type == "MatMulNBits" for node in result.model.proto.graph.node)
    strict = outputs(result.model, "lenet300", provider=PROVIDER, config=STRICT)
    assert_near(outputs(model, "lenet300"), strict, 0.1)


def test_limits_are_those_of_the_installed_release() -> None:
    assert (target().supported_opset, target().supported_ir) == supported()
    assert supported() >= (25, 13)


def test_threads_reach_the_provider() -> None:
    assert Target.of("openvino", threads=2).provider_options == {"num_of_threads": "2"}
    told = Target.of("openvino", threads=2, provider_options={"num_of_threads": "1"})
    assert told.provider_options == {"num_of_threads": "1"}


@pytest.mark.parametrize("recipe", ["fast", "lossless", "default"])
def test_the_command_line_optimizes_for_openvino(recipe: str, tmp_path: Path) -> None:
    model, result = MODELS / "lenet300.onnx", tmp_path / "out.onnx"
    options = ["--ep", "openvino", "--recipe", recipe, "--calib-data", str(MODELS / DATA["lenet300"]), "-q"]
    with pytest.raises(SystemExit) as ended:
        main(["optimize", str(model), "-o", str(result), *options])
    assert ended.value.code == 0
    receipt = json.loads((tmp_path / "out.receipt.json").read_text())
    assert receipt["target"] == "openvino"
    assert receipt["verdict"]["passed"]
    assert_near(
        outputs(load(model), "lenet300"), outputs(load(result), "lenet300", provider=PROVIDER, config=STRICT), 0.2
    )
