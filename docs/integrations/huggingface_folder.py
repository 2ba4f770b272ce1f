"""A Hugging Face folder with smaller models: python huggingface_folder.py FOLDER NEW_FOLDER [samples.npz]

Everything is copied (config, tokenizer, preprocessor, README) but the ONNX models and their external data, which are
compressed one by one under their old names, so that transformers, Optimum and transformers.js find them. A model that
the samples do not fit is compressed without data.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

import onnxcomp


def compress_folder(source: Path, target: Path, samples: str | None = None, recipe: str = "default") -> list[Path]:
    """Write the new folder; gives the models in it."""
    models = sorted(source.rglob("*.onnx"))
    left_out = {*models, *(data for model in models for data in data_files(model))}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path not in left_out:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    written = []
    for model in models:
        path = target / model.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        _compress(model, samples, recipe).save(path, force=True)
        written.append(path)
    return written


def data_files(model: Path) -> set[Path]:
    """The files that hold a model's external data."""
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    return {model.parent / ExternalDataInfo(each).location for each in tensors if uses_external_data(each)}


def _compress(model: Path, samples: str | None, recipe: str) -> onnxcomp.Result:
    if samples is not None:
        try:
            return onnxcomp.optimize(model, recipe=recipe, calibration=samples)
        except onnxcomp.OnnxcompError as error:
            print(f"{model}: without data, since {error}", file=sys.stderr)
    return onnxcomp.optimize(model, recipe=recipe)


if __name__ == "__main__":
    for each in compress_folder(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5]):
        print(each)
