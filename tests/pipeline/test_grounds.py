"""Data that show nothing license no more than none, and it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.errors import CalibrationError
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize
from onnxcomp.recipe import Recipe, Step
from onnxcomp.registry import get_pass
from onnxcomp.verify import Verifier
from onnxcomp.verify.verifier import BREAKAGE_DIVERGENCE

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => (float[N,48] y) { y = MatMul(x, w) }"""


@dataclass(frozen=True)
class Evidence:
    """What a verifier found to compare."""

    distinct: int
    compared: tuple[str, ...] = ("y",)
    silent: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_enough(self) -> bool:
        return self.distinct >= 2 and bool(self.compared)


@pytest.fixture
def calib(tmp_path: Path) -> str:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(1).standard_normal((60, 32)).astype(np.float32))
    return str(tmp_path / "c.npz")


def net() -> Model:
    proto = parser.parse_model(TEXT)
    values = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return load(proto)


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (Evidence(1), "all samples are the same"),
        (Evidence(60, (), {"y": "constant"}), "output y shows nothing (constant)"),
    ],
)
def test_data_that_show_nothing_license_eight_bits(
    calib: str, monkeypatch: pytest.MonkeyPatch, evidence: Evidence, said: str
) -> None:
    monkeypatch.setattr(Verifier, "evidence", evidence, raising=False)
    recipe = Recipe(
        "r", (Step(get_pass("cluster-weights")(), auto=True), Step(get_pass("match-outputs")(), when="calibration"))
    )
    result = optimize(net(), recipe=recipe, calibration=calib, measure=False)
    assert f"not verified: {said}; only what is safe without data was done" in result.receipt.notes
    assert [each.rewrite for each in result.receipt.steps] == ["cluster-weights"]
    assert result.receipt.metric["limit"] == BREAKAGE_DIVERGENCE
    without = optimize(net(), recipe=recipe, measure=False)
    assert result.model.to_bytes() == without.model.to_bytes()


def test_one_bit_is_refused_on_data_that_show_nothing(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verifier, "evidence", Evidence(1), raising=False)
    [report] = optimize(
        net(), recipe=Recipe.of(get_pass("binarize-weights")()), calibration=calib, measure=False
    ).receipt.steps
    assert report.decision == "taken back" and report.reason == "w: no sample reaches it"


def test_nothing_is_calibrated_on_data_that_show_nothing(calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verifier, "evidence", Evidence(1), raising=False)
    with pytest.raises(CalibrationError, match=r"quantize-static.*all samples are the same"):
        optimize(net(), recipe=Recipe.of(get_pass("quantize-static")()), calibration=calib, measure=False)
