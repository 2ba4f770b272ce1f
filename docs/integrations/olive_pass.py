"""onnxcomp as a pass of Olive: the file lies where `olive run --config olive.json` is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

import onnxcomp


class OnnxcompOptimize(Pass):
    """Compress within an accuracy budget that is verified in ONNX Runtime."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, Any]:
        return {
            "recipe": PassConfigParam(type_=str, default_value="default", description="a preset's name or a TOML file"),
            "samples": PassConfigParam(type_=str, default_value=None, description="what --calib-data takes"),
            "max_drop": PassConfigParam(type_=str, default_value=None, description="0.01, or 1%"),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        output = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        budget = onnxcomp.Budget.parse(max_drop=config.max_drop)
        result = onnxcomp.optimize(model.model_path, recipe=config.recipe, calibration=config.samples, budget=budget)
        result.save(output, force=True)
        return ONNXModelHandler(model_path=output)
