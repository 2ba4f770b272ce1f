"""Which kinds of model there are, and where each keeps its files.

``kinds/NAME.py`` trains and scores one model; ``models/NAME`` holds what it trained:
model.onnx, calib.npz (or a folder calib of numbered .npz) and test.npz.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], dict[str, Array]]
HERE = Path(__file__).parent
MODELS = HERE / "models"
SCORES = MODELS / "scores.json"


class Kind(Protocol):
    """What a module of ``kinds`` offers.

    KIND: the family left out together in leave-one-kind-out. EXPORTER: what wrote the ONNX file.
    """

    KIND: str
    EXPORTER: str

    def build(self, folder: Path, seed: int) -> None:
        """Train, and write model.onnx, calib.npz and test.npz into ``folder``."""

    def units(self, run: Run, test: dict[str, Array]) -> Array:
        """(units, k): statistics of every test unit (a sample, an image, a sequence)."""

    def score(self, units: Array) -> float:
        """One figure in points, higher is better, of any subset of the units."""


def names(wanted: Sequence[str] = ()) -> list[str]:
    """All kinds, or the wanted ones. Raises SystemExit for one that does not exist."""
    known = sorted(path.stem for path in (HERE / "kinds").glob("*.py") if not path.stem.startswith("_"))
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise SystemExit(f"no such kind: {', '.join(unknown)}. There are: {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def trained(wanted: Sequence[str] = ()) -> list[str]:
    """Those of ``names`` whose model is there."""
    return [name for name in names(wanted) if model_path(name).is_file()]


def kind(name: str) -> Kind:
    """The module of one kind."""
    return cast(Kind, importlib.import_module(f"benchmarks.judge.kinds.{name}"))


def model_path(name: str) -> Path:
    """Where the model lies."""
    return MODELS / name / "model.onnx"


def calibration_path(name: str) -> Path:
    """What ``--calib-data`` gets: one file, or a folder of them."""
    folder = MODELS / name / "calib"
    return folder if folder.is_dir() else MODELS / name / "calib.npz"


def calibration_feeds(name: str) -> list[dict[str, Array]]:
    """The arrays of every calibration file."""
    path = calibration_path(name)
    files = sorted(path.glob("*.npz"), key=lambda each: int(each.stem)) if path.is_dir() else [path]
    return [dict(np.load(each)) for each in files]


def test_data(name: str) -> dict[str, Array]:
    """Test inputs and targets."""
    return dict(np.load(MODELS / name / "test.npz"))
