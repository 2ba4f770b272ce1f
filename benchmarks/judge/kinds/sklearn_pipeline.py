"""A scikit-learn pipeline, StandardScaler and MLPClassifier: labels (N,) int64 and probabilities (N, 5).

The classes are uneven, 50 to 4 of a hundred; the features have sizes from 0.01 to 1,000.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from benchmarks.judge import figures
from benchmarks.judge.catalogue import Array, Run

KIND = "tabular classifier"
EXPORTER = "skl2onnx"
SIZES = np.logspace(-2, 3, 16)


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    from skl2onnx import to_onnx
    from sklearn.datasets import make_classification
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = make_classification(
        20_000,
        16,
        n_informative=10,
        n_redundant=3,
        n_classes=5,
        n_clusters_per_class=3,
        weights=[0.5, 0.25, 0.14, 0.07],
        class_sep=1.3,
        flip_y=0.02,
        random_state=seed,
    )
    features = (features * SIZES).astype(np.float32)
    network = MLPClassifier((192, 96), alpha=1e-3, batch_size=128, max_iter=20, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes is what bounds the time
        pipeline.fit(features[:15_000], labels[:15_000])
    model = to_onnx(pipeline, features[:1], "pipeline", options={"zipmap": False}, target_opset=17)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    np.savez_compressed(folder / "calib.npz", X=features[15_000:15_400])
    tested = features[16_000:].astype(np.float16)
    np.savez_compressed(folder / "test.npz", features=tested, labels=labels[16_000:].astype(np.uint8))


def units(run: Run, test: dict[str, Array]) -> Array:
    """Per sample: the class it is and the label put out."""
    found = run({"X": test["features"].astype(np.float32)})["label"]
    return np.stack([test["labels"], found], 1)


def score(units: Array) -> float:
    """Macro F1 x 100."""
    return figures.macro_f1(units[:, 0], units[:, 1])
