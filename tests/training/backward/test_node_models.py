"""ONNX's node models, as far as the engine differentiates them: gradients beside finite differences.

They run with ONNXCOMP_THOROUGH (`make test-thorough`): to collect them alone takes seconds.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnxcomp.model import load
from onnxcomp.training.backward.engine import BackwardEngine
from tests.conformance.cases import Case, node_cases
from tests.training.backward.drawn import THOROUGH
from tests.training.backward.finite_differences import check_model
from tests.training.backward.node_models import with_loss

PARTS = 36
SATURATED = 1e-5  # as what comes of tanh near one, where float32 has no more digits
LEFT_OUT = re.compile(
    "_expanded|^test_resize"  # scales are no parameters; test_moving has both
    "|fullymasked|nan_robustness|gqa_rank4_mask|mask_causal$"  # 0 * inf in a row that is masked whole
    "|test_clip_min_greater|test_pow$|l2normalization_axis_0"  # no derivative there
)


def cases(part: int) -> list[Case]:
    every = [each for each in node_cases().cases if each.repeats and not LEFT_OUT.search(each.name)]
    return sorted(every, key=lambda case: case.name)[part::PARTS]


@pytest.mark.slow
@pytest.mark.skipif(not THOROUGH, reason="takes long: make test-thorough")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_gradients_of_onnx_s_node_models(part: int) -> None:
    checked, wrong = 0, []
    for case in cases(part):
        made = with_loss(case)
        if made is None or BackwardEngine.unsupported(load(made[0]), "the_loss", list(made[1])):
            continue
        checked += 1
        if (message := _wrong(*made)) is not None:
            wrong.append(f"{case.name}: {message}")
    assert not wrong, "\n".join(wrong)
    assert checked >= 10


def _wrong(proto: Any, values: dict[str, Any], feeds: dict[str, Any]) -> str | None:
    """What differs, by onnx's evaluator in float64 and, where that knows the operator less well, by ONNX Runtime."""
    rng = np.random.default_rng(0)
    aside = {  # of the places at which a function has no slope: zeros, ties, whole numbers
        name: (each + 0.01 * rng.normal(size=each.shape)).astype(np.float32) for name, each in values.items()
    }
    told = ""
    for by_runtime, tolerance in ((0.0, 1e-2), (1e-2, 3e-2)):
        try:
            check_model(
                proto,
                aside,
                feeds,
                loss="the_loss",
                per_element=6,
                tolerance=tolerance,
                by_runtime=by_runtime,
                floor=SATURATED,
            )
        except AssertionError as error:
            told += str(error)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # of an operator that it does not know
            told += f"{type(error).__name__}: {error}"
        else:
            return None
    return told[:1500]
