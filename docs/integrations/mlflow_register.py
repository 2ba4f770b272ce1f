"""Compress a model, log what it cost, and register it: python mlflow_register.py model.onnx samples.npz NAME

Where MLFLOW_TRACKING_URI leads there are then the parameters, the sizes, the divergence and its limit, the receipt,
and a version of the registered model NAME, which is only made where the result is within the budget.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import onnx

import onnxcomp


def register(model: str, samples: str, name: str, recipe: str = "default") -> str:
    """Compress, evaluate and register; gives the version."""
    result = onnxcomp.optimize(model, recipe=recipe, calibration=samples)
    receipt, path = result.receipt, Path(f"{name}.onnx")
    result.save(path, force=True)
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"recipe": receipt.recipe, "seed": receipt.seed, "target": receipt.target})
        mlflow.log_metrics(
            {
                "bytes_before": receipt.source["bytes"],
                "bytes_after": receipt.result["bytes"],
                "divergence": receipt.verdict["divergence"],
                "limit": receipt.verdict["limit"],
            }
        )
        mlflow.log_artifact(str(path.with_suffix(".receipt.json")))
        if not receipt.verdict["passed"]:
            raise SystemExit(f"{name}: not within the budget, so it is not registered")
        logged = mlflow.onnx.log_model(onnx.load(path), name="model", registered_model_name=name)
    return str(logged.registered_model_version)


if __name__ == "__main__":
    print(f"{sys.argv[3]} version {register(*sys.argv[1:5])}")
