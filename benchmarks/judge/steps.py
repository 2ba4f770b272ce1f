"""What the command line does for one model at a time, so that it can be done in processes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.judge import catalogue, damage, scoring, tables


def write(path: Path, values: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def train(name: str) -> None:
    """Train one model; the same seed gives the same model on the same machine."""
    started = time.monotonic()
    folder = catalogue.MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    catalogue.kind(name).build(folder, 0)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name}: {size / 1000:.0f} kB, {time.monotonic() - started:.0f} s", flush=True)


def write_scores(names: Iterable[str]) -> None:
    """The originals' scores, kept for the test that the models still give them."""
    found = tables.read(catalogue.SCORES)
    for name in names:
        units = scoring.units_of(name, catalogue.model_path(name))
        found[name] = round(catalogue.kind(name).score(units), 3)
        print(f"{name}: {found[name]} from {len(units)} units", flush=True)
    write(catalogue.SCORES, found)


def make_damage(name: str, scratch: Path) -> None:
    """Write the variants of one model and what each loses."""
    from benchmarks.judge.judging import calibration_batches

    started = time.monotonic()
    source = catalogue.model_path(name)
    scorer = scoring.Scorer(name, scratch / "units")
    folder = scratch / "variants" / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.onnx"):
        old.unlink()
    losses = {}
    made = [*damage.variants(source.read_bytes()), *damage.static_variants(source, calibration_batches(name))]
    for variant in made:
        (folder / f"{variant.name}.onnx").write_bytes(variant.model)
        losses[variant.name] = {"group": variant.group, **asdict(scorer.loss(variant.model))}
    write(scratch / "losses" / f"{name}.json", losses)
    hurt = sum(map(tables.is_harmful, losses.values()))
    unhurt = sum(map(tables.is_harmless, losses.values()))
    took = time.monotonic() - started
    print(f"{name}: {len(losses)} variants, {hurt} harmful, {unhurt} harmless, {took:.0f} s", flush=True)


def make_verdicts(name: str, scratch: Path) -> None:
    """Ask the judge about every variant of one model."""
    from benchmarks.judge.judging import judge_of

    started = time.monotonic()
    check = judge_of(name)
    found = {path.stem: check(path) for path in sorted((scratch / "variants" / name).glob("*.onnx"))}
    write(scratch / "verdicts" / f"{name}.json", found)
    passed = sum(each["passed"] for each in found.values())
    print(f"{name}: {passed} of {len(found)} passed, {time.monotonic() - started:.0f} s", flush=True)


def make_recipes(name: str, scratch: Path, wanted: list[str]) -> None:
    """Run the recipes on one model."""
    from benchmarks.judge.recipes import optimized

    for recipe in wanted:
        row = optimized(name, recipe, scratch)
        write(scratch / "recipes" / recipe / f"{name}.json", row)
        ratio = row["bytes"] / row["original_bytes"]
        lost = f"{row['loss']:.2f} +- {row['se']:.2f} points lost"
        print(f"{name} {recipe}: {ratio:.3f}, {lost}, {row['seconds']} s", flush=True)
