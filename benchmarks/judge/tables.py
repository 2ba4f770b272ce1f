"""The benchmark's tables in Markdown: every pair, false accepts and refusals a kind, the recipes.

A false accept passed although the score fell by more than half a point and two standard errors. A false
refusal did not pass although less than a tenth of a point and half a standard error was lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.judge import catalogue

Pair = dict[str, Any]


def is_harmful(pair: Pair) -> bool:
    """Half a point and two standard errors were lost."""
    return bool(pair["loss"] > 0.5 and pair["loss"] > 2 * pair["se"])


def is_harmless(pair: Pair) -> bool:
    """Nothing was lost."""
    return bool(pair["loss"] < 0.1 and pair["loss"] <= 0.5 * pair["se"])


def read(path: Path) -> dict[str, Any]:
    """A JSON file, empty where there is none."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def pairs(scratch: Path) -> Iterator[Pair]:
    """Every variant with its loss and its verdict."""
    for name in catalogue.trained():
        losses, verdicts = read(scratch / "losses" / f"{name}.json"), read(scratch / "verdicts" / f"{name}.json")
        for variant, loss in losses.items():
            if variant in verdicts:
                verdict = verdicts[variant]
                yield {"model": name, "kind": catalogue.kind(name).KIND, "variant": variant, **verdict, **loss}


def summary(found: list[Pair]) -> str:
    """Counts a model and in all."""
    lines = [
        "| model | score | pairs | harmful | false accepts | worst, points | harmless | false refusals |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [*sorted({pair["model"] for pair in found}), "all"]:
        own = [pair for pair in found if name in (pair["model"], "all")]
        harmful, harmless = [p for p in own if is_harmful(p)], [p for p in own if is_harmless(p)]
        accepted = [pair for pair in harmful if pair["passed"]]
        refused = [pair for pair in harmless if not pair["passed"]]
        score = "" if name == "all" else f"{own[0]['score'] + own[0]['loss']:.2f}"
        worst = max((pair["loss"] for pair in accepted), default=0.0)
        counts = f"{len(own)} | {len(harmful)} | {_share(accepted, own)} | {worst:.2f}"
        lines.append(f"| {name} | {score} | {counts} | {len(harmless)} | {_share(refused, harmless)} |")
    over = sum(pair["passed"] and is_harmful(pair) and pair["loss"] > 2 for pair in found)
    return "\n".join([*lines, "", f"False accepts with a loss over 2 points: {over}."])


def _share(some: list[Pair], of: list[Pair]) -> str:
    return f"{len(some)} ({100 * len(some) / len(of):.1f}%)" if of else "0"


def every_pair(found: list[Pair]) -> str:
    """One row a pair, by divergence within each model."""
    lines = []
    for name in sorted({pair["model"] for pair in found}):
        lines += [f"\n## {name}\n", "| variant | points lost | SE | divergence | passed | |", "|" + "---|" * 6]
        own = [pair for pair in found if pair["model"] == name]
        for pair in sorted(own, key=lambda each: _or_inf(each["divergence"])):
            passed = pair["passed"]
            wrong = "FALSE ACCEPT" if passed and is_harmful(pair) else ""
            wrong = "false refusal" if not passed and is_harmless(pair) else wrong
            figures = f"{pair['loss']:.2f} | {pair['se']:.2f} | {_or_inf(pair['divergence']):.4f}"
            lines.append(f"| {pair['variant']} | {figures} | {'yes' if passed else 'no'} | {wrong} |")
    return "\n".join(lines)


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value


def recipe_rows(scratch: Path) -> str:
    """One row a model and recipe; marked where it lost over half a point, or over one and a half standard errors."""
    lines = ["| model | recipe | ratio | seconds | divergence | points lost | SE | |", "|" + "---|" * 8]
    for path in sorted((scratch / "recipes").glob("*/*.json")):
        if path.name.endswith(".receipt.json"):
            continue
        row = read(path)
        beyond_chance = row["loss"] > max(1.5 * row["se"], 1e-9)
        over = "OVER" if row["loss"] > 0.5 else "over 1.5 SE" if beyond_chance else ""
        figures = f"{row['bytes'] / row['original_bytes']:.3f} | {row['seconds']:.0f}"
        divergence = _or_inf(row["verdict"].get("divergence"))
        lost = f"{divergence:.4f} | {row['loss']:.2f} | {row['se']:.2f} | {over}"
        lines.append(f"| {path.stem} | {path.parent.name} | {figures} | {lost} |")
    return "\n".join(lines)


def text(scratch: Path, limit: float) -> str:
    """All tables but that of the pairs. limit: of the verdicts."""
    from benchmarks.judge import leave_out

    found = list(pairs(scratch))
    parts = {
        "Verdicts": summary(found),
        "One family left out": leave_out.table(found),
        f"What a divergence of {limit:g} costs": leave_out.slopes(found, limit),
        "Recipes": recipe_rows(scratch),
    }
    return "\n".join(f"## {title}\n\n{body}\n" for title, body in parts.items())
