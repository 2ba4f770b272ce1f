"""A gate: may this model stand for its original? By its receipt, by what both give for the same inputs, or by both."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.budget import Drop
from onnxcomp.calibration import Sequences
from onnxcomp.errors import ModelError, RecipeError, TargetError
from onnxcomp.model import HASH_DIGITS, load
from onnxcomp.pipeline.api import silent
from onnxcomp.pipeline.reports.compare import compare
from onnxcomp.pipeline.result import Result
from onnxcomp.pipeline.run import Progress
from onnxcomp.receipt import Receipt, file_digest
from onnxcomp.target import Target

Data = str | os.PathLike[str] | Sequences | None
RECEIPT = ".json"
OF_THE_RUN = "time:"  # how long a run took says nothing against its model


@dataclass(frozen=True)
class Check:
    """What a gate found. problems: why it stays shut, empty where it opens. notes: what a reader must know.

    verdict: as ``Verdict.describe`` gives it, of now where data were given (``measured``), else the receipt's.
    original_bytes: None where neither a receipt nor a file tells.
    """

    model: str
    model_bytes: int
    original_bytes: int | None
    metric: str
    verdict: dict[str, Any]
    measured: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the model."""
        return not self.problems


def receipt_of(path: Path) -> Path:
    """The receipt that a path means: itself, or that of a model, beside it. Raises RecipeError where there is none."""
    if path.suffix == RECEIPT:
        return path
    found = Result.account_path(path)
    if not found.is_file():
        raise RecipeError(f"{path}: has no receipt beside it ({found.name}). Name the model to compare it with, too.")
    return found


def check_receipt(
    path: Path,
    *,
    calibration: Data = None,
    reference: Path | None = None,
    max_drop: Drop | None = None,
    ep: str | None = None,
    custom_ops: tuple[Path, ...] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> Check:
    """Hold a receipt against the files: they are as recorded, the model loads, its verdict was within the budget.

    calibration: the outputs are compared once more, on all of it, by the receipt's metric and limit (or ``max_drop``).
    reference: the original, where it is not where the receipt says. ep: None for the receipt's.
    Raises RecipeError for what is no receipt, TargetError where the provider is not installed.
    """
    receipt = Receipt.read(path)
    target = Target.of(ep or receipt.target, custom_ops=custom_ops)
    model = path.with_name(str(receipt.result.get("path", "")))
    problems = [*_file_problems(model, receipt), *_recorded_problems(receipt, is_measured=calibration is not None)]
    notes = []
    if receipt.data["random"]:
        notes.append("it was verified on random inputs, which show breakage only")
    original = reference or _original(receipt, path)
    if original is not None and file_digest(original) != receipt.source["sha256"]:
        problems.append(f"{original} is not the original that the receipt tells of")
    if original is None and calibration is None:
        notes.append("the original is not here, so it was not looked at")
    if not problems:
        problems += _loading_problems(model, target)
    verdict, metric, measured = receipt.verdict, str(receipt.metric["name"]), False
    if calibration is not None and not problems:
        if original is None:
            raise ModelError(f"{receipt.source.get('path')}: the original is not there. Name it: --reference FILE.")
        was_judged = receipt.verdict.get("verified", True) and not receipt.data["random"]
        drop = max_drop or (Drop(float(receipt.metric["limit"])) if was_judged else None)
        found = compare(
            original, model, calibration=calibration, target=target, metric=_asked_metric(receipt), max_drop=drop,
            outputs=receipt.metric.get("asked", {}), seed=seed, progress=progress,
        )  # fmt: skip
        verdict, metric, measured = found.verdict.describe(), found.metric, True
        problems += _verdict_problems(verdict)
        notes = list(found.notes)
    return Check(
        model=model.name,
        model_bytes=int(receipt.result["bytes"]),
        original_bytes=int(receipt.source["bytes"]),
        metric=metric,
        verdict=verdict,
        measured=measured,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def check_models(model: Path, reference: Path, **options: Any) -> Check:
    """Hold a model against a reference on data. options: those of ``compare``."""
    found = compare(reference, model, **options)
    verdict = found.verdict.describe()
    notes = [*found.notes, *(["compared on random inputs, which show breakage only"] if found.random else [])]
    return Check(
        model=found.model,
        model_bytes=found.model_bytes,
        original_bytes=found.reference_bytes,
        metric=found.metric,
        verdict=verdict,
        measured=True,
        problems=tuple(_verdict_problems(verdict)),
        notes=tuple(notes),
    )


def _file_problems(model: Path, receipt: Receipt) -> list[str]:
    """What of the files is not as it was written."""
    if not model.is_file():
        return [f"{model} is missing"]
    if file_digest(model) != receipt.result.get("sha256"):
        return [f"{model.name} is not the file that the receipt tells of: its SHA-256 differs"]
    pattern = f"{glob.escape(model.name)}.{'[0-9a-f]' * HASH_DIGITS}.data"
    data = sorted(model.parent.glob(pattern))
    changed = [each.name for each in data if not file_digest(each).startswith(each.name.split(".")[-2])]
    if changed:
        return [f"{each} is not the data that the model was written with" for each in changed]
    size = sum(each.stat().st_size for each in (model, *data))
    recorded = int(receipt.result["bytes"])
    return [f"{size:,} bytes are there, {recorded:,} were written: data are missing"] if size != recorded else []


def _recorded_problems(receipt: Receipt, *, is_measured: bool) -> list[str]:
    """What the receipt itself says against its model. is_measured: what it could not judge is judged now."""
    goals = [each for each in receipt.missed if not each.startswith(OF_THE_RUN)]
    is_open = is_measured and receipt.verdict["passed"]
    return [*([] if is_open else _verdict_problems(receipt.verdict)), *(f"goal missed: {each}" for each in goals)]


def _verdict_problems(verdict: dict[str, Any]) -> list[str]:
    if not verdict["passed"]:
        return list(verdict.get("reasons") or ["the outputs are over the limit"])
    if not verdict.get("verified", True):
        return ["nothing was compared: give data that reach its outputs"]
    return []


def _loading_problems(model: Path, target: Target) -> list[str]:
    try:
        with load(model).opened_on(target.session):
            return []
    except (ModelError, TargetError) as error:
        return [str(error)]


def _original(receipt: Receipt, path: Path) -> Path | None:
    """The original: where the run found it, or beside the receipt; None where it is not here."""
    named = Path(str(receipt.source.get("path") or ""))
    places = [named, path.with_name(named.name)] if named.name else []
    return next((each for each in places if each.is_file()), None)


def _asked_metric(receipt: Receipt) -> str:
    """The metric to ask for, so that the receipt's is measured again; where nothing could be compared, it has none."""
    name = str(receipt.metric["name"])
    return "auto" if name in ("divergence", "accuracy") or not receipt.verdict.get("verified", True) else name

