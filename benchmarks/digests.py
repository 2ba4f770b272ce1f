"""The bytes of results: what a change of the code must not change, or says why.

    python -m benchmarks.digests OUT.json [NAME ...]
    python -m benchmarks.digests --compare BEFORE.json AFTER.json

Every preset is run on random graphs and on the models of models/, and the SHA-256 of each result noted; NAME: only keys
that hold it ("random3", "lenet5 fast"). Latencies are taken for sizes, so that nothing depends on the clock. A stopped
run goes on where it was.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import Model, OnnxcompError, optimize
from onnxcomp.pipeline.model_search import tournament
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.recipe import preset_names
from onnxcomp.target.node_times import NodeTimes
from onnxcomp.testing.models import draw_models

MODELS = Path(__file__).parent.parent / "models"
RANDOM = 20


def by_size(course: Course, models: Mapping[str, Model], **_: Any) -> dict[str, float]:
    """The size of each model in bytes, in the place of its latency."""
    return {name: float(each.size_bytes) for name, each in models.items()}


def sources() -> Iterator[tuple[str, Any, Path | None]]:
    """Name, model and calibration data of each."""
    for index, model in enumerate(draw_models(RANDOM, seed=3)):
        yield f"random{index}", model, None
    manifest = tomllib.loads((MODELS / "manifest.toml").read_text(encoding="utf-8"))
    for each in manifest["model"]:
        yield Path(each["file"]).stem, MODELS / each["file"], MODELS / each["calibration"]


def record(out: Path, wanted: Sequence[str]) -> None:
    """Fill in what is missing in the table."""
    found: dict[str, str] = json.loads(out.read_text()) if out.exists() else {}
    Course.milliseconds = by_size  # type: ignore[assignment]
    NodeTimes.milliseconds = lambda _, excerpts, __: [float(each.nbytes) for each in excerpts]  # type: ignore[method-assign]
    NodeTimes.whole = lambda _, models, *__: [float(each.size_bytes) for each in models]  # type: ignore[method-assign]
    tournament.faster_nodes = lambda before, after, names, *_, **__: list(names)  # type: ignore[assignment]
    for name, model, data in sources():
        for recipe in preset_names():
            key = f"{name} {recipe}"
            if key in found or (wanted and not any(each in key for each in wanted)):
                continue
            found[key] = digest(model, recipe, data)
            print(key, found[key], flush=True)
            out.write_text(json.dumps(found, indent=1) + "\n")


def digest(model: Any, recipe: str, data: Path | None) -> str:
    """The SHA-256 of the result and its size, or the error in the place of one."""
    try:
        result = optimize(model, recipe=recipe, calibration=data, measure=False)
    except OnnxcompError as error:
        return f"error: {error}"
    return f"{result.receipt.result['sha256']} {result.receipt.result['bytes']}"


def compare(before: Path, after: Path) -> int:
    """Print what differs; 1 where something does."""
    old, new = (json.loads(each.read_text()) for each in (before, after))
    common = old.keys() & new.keys()
    different = sorted(key for key in common if old[key] != new[key])
    for key in different:
        print(f"{key}: {old[key]} -> {new[key]}")
    print(f"{len(common) - len(different)} of {len(common)} the same")
    return int(bool(different))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compare"]:
        sys.exit(compare(Path(sys.argv[2]), Path(sys.argv[3])))
    record(Path(sys.argv[1]), sys.argv[2:])
