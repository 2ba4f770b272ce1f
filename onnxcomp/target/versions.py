"""ONNX Runtime's versions: the highest opset and IR version that each loads.

``supported((1, 18))`` -> (21, 10).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from onnxcomp.errors import ParameterError

# ONNX Runtime -> highest opset and IR version it loads: the ONNX release that each was built with
# (https://onnxruntime.ai/docs/reference/compatibility.html and that release's own table of versions).
# The installed version is asked instead (`supported`), so a newer one needs no new row here.
VERSIONS: Mapping[tuple[int, int], tuple[int, int]] = {
    (1, 0): (11, 6),
    (1, 2): (12, 7),
    (1, 6): (13, 7),
    (1, 8): (14, 7),
    (1, 9): (15, 8),
    (1, 11): (16, 8),
    (1, 12): (17, 8),
    (1, 14): (18, 8),
    (1, 15): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 21): (22, 10),
    (1, 22): (23, 11),
    (1, 24): (25, 13),
    (1, 25): (26, 13),
    (1, 32): (28, 14),
}


def supported(version: tuple[int, int] | None = None) -> tuple[int, int]:
    """Highest (opset, IR version) that ONNX Runtime ``version`` loads; the installed one is asked itself.

    Raises ParameterError for a version before 1.0.
    """
    if version is None:
        return _asked()
    rows = [limits for known, limits in VERSIONS.items() if known <= version]
    if not rows:
        raise ParameterError(f"min-ort: must be 1.0 or newer, got {version[0]}.{version[1]}")
    return rows[-1]


def oldest_ort(*, opset: int, ir: int) -> tuple[int, int] | None:
    """The oldest ONNX Runtime in the table that loads this opset and IR version; None if none does."""
    return next((known for known, limits in VERSIONS.items() if limits[0] >= opset and limits[1] >= ir), None)


@functools.cache
def _asked() -> tuple[int, int]:
    """What the installed ONNX Runtime loads, found by opening one-node models of rising versions."""
    from onnx import TensorProto, defs, helper

    from onnxcomp.runtime import loads

    def opens(opset: int, ir: int) -> bool:
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
        return loads(model.SerializeToString())

    opset = max(n for n in range(7, defs.onnx_opset_version() + 1) if opens(n, 3 if n < 9 else 8))
    newest_ir = helper.VERSION_TABLE[-1][1]
    return opset, max(n for n in range(3, newest_ir + 1) if opens(min(opset, 9), n))
