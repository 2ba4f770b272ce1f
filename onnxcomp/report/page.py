"""The page: what the templates show, taken from the receipt.

Every name goes through ``plain`` and is escaped by Jinja. The page may fetch nothing and run no script but its own: its
first line says so to the browser.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from onnxcomp import formats
from onnxcomp.judgement import judgement
from onnxcomp.receipt import OutlineNode, Receipt, StepReport, Tried
from onnxcomp.report.facts import front, in_millions
from onnxcomp.report.plain import plain
from onnxcomp.report.prices import UNIT, going_rate, offers, reasons, verdict_on
from onnxcomp.report.story import Account, WeightStory
from onnxcomp.report.treemap import Portion, Tile, treemap

TEMPLATES = files("onnxcomp.report") / "templates"
PARTS = ("page.html", "parts.html", "weights.html", "style.css", "script.js")
SOURCES = {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in PARTS}
"""The templates, read with this module: a page is made at the end of a long run, when newer ones may lie there."""

NOTHING, KEPT = "nothing to do", "kept"
DECADES = 4  # that a bar of sensitivity spans
OPEN_ROWS = 40  # a longer outline is folded


def render(receipt: Receipt, *, name: str = "") -> str:
    """The receipt as a page, called ``name``, by default after the source model."""
    account = Account.of(receipt)
    environment = _environment()
    content = {
        "name": name or source_name(receipt),
        "receipt": receipt,
        "account": account,
        "judgement": judgement(receipt),
        "facts": front(receipt),
        "steps": [each for each in receipt.steps if each.decision != NOTHING],
        "idle": [each.rewrite for each in receipt.steps if each.decision == NOTHING],
        "most_bytes": max([int(receipt.source["bytes"]), *(each.bytes_after for each in receipt.steps)]),
        "tried": tried(receipt),
        "before_map": before_map(account),
        "after_map": after_map(account),
        "sensitive": sensitive(account),
        "rate": going_rate(account),
        "operators": _operators(receipt),
        "touched": _touched(receipt),
        "replay": replay_command(receipt),
        "style": Markup(SOURCES["style.css"]),
        "script": Markup(SOURCES["script.js"]),
        "script_hash": _digest(SOURCES["script.js"]),
    }
    return environment.get_template("page.html").render(content)


def source_name(receipt: Receipt) -> str:
    """What the source model's file is called."""
    return PurePath(str(receipt.source.get("path") or "")).name or "model"


def replay_command(receipt: Receipt) -> str:
    """The command that makes the result again, byte for byte, from the folder of the receipt."""
    result = PurePath(str(receipt.result.get("path") or "model.onnx"))
    words = ["onnxcomp", "optimize", str(receipt.source.get("path") or "MODEL.onnx")]
    words += ["--replay", f"{result.stem}.receipt.json"]
    if not receipt.data["random"] and any(each.on_data for each in receipt.applied):
        words += ["--calib-data", str(receipt.data.get("source") or "DATA.npz")]
    if receipt.reference.get("path"):
        words += ["--reference", str(receipt.reference["path"])]
    return shlex.join([*words, "-o", f"{result.stem}.again.onnx"])


def tried(receipt: Receipt) -> list[tuple[Tried, float | None]]:
    """What was tried on the whole model, the fastest first, each with its time beside that of what was kept (of the
    model before where nothing was), as the command shows it: the ratio to the original is on the front page."""
    found: list[tuple[Tried, float | None]] = []
    for report in receipt.steps:
        kept = next((each.latency_ratio for each in report.tried if each.outcome == KEPT and each.latency_ratio), 1.0)
        times = [None if each.latency_ratio is None else each.latency_ratio / kept for each in report.tried]
        rows = list(zip(report.tried, times, strict=True))
        found += sorted(rows, key=lambda row: math.inf if row[1] is None else row[1])
    return found


def common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a mark that parts names: on a narrow cell it would be all that is seen."""
    if len(names) < 2:
        return ""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    shared = "".join(letter for letter, _ in pairs)
    return shared[: 1 + max(map(shared.rfind, "/.:"))]


def before_map(account: Account) -> list[Tile]:
    """The source by bytes, each weight with what is left of it."""
    shared = _shared(account)
    sizes = [(each, each.before) for each in account.weights if each.before]
    parts = [
        Portion(each.name[shared:], size, each.after, f"{formats.size(size)} → {formats.size(each.after)}")
        for each, size in sizes
    ]
    source = int(account.receipt.source["bytes"]) - sum(each.before or 0 for each in account.weights)
    left = _rest(account)
    return treemap([*parts, *_others(source, min(left, source))], rest="smaller ones")


def after_map(account: Account) -> list[Tile]:
    """The result by bytes."""
    shared = _shared(account)
    names = {each.number: each.name[shared:] if each.before else each.name for each in account.weights}
    parts = [Portion(names[each.number], each.after, 0.0, _after_words(each)) for each in account.weights]
    return treemap([*parts, *_others(_rest(account), 0)], rest="smaller ones")


def _shared(account: Account) -> int:
    """How many letters all names of the source's weights begin with."""
    return len(common_prefix([each.name for each in account.weights if each.before]))


def _rest(account: Account) -> int:
    return int(account.receipt.result["bytes"]) - sum(each.after for each in account.weights)


def _others(size: int, left: int) -> list[Portion]:
    if size <= 0:
        return []
    return [Portion("graph, names and small constants", size, left, formats.size(size), is_weight=False)]


def _after_words(story: WeightStory) -> str:
    bits = story.bits
    return formats.size(story.after) + ("" if bits is None else f", {formats.significant(bits)} bits a value")


def _anchor(story: WeightStory) -> str:
    return f"w{story.number}"


def sensitive(account: Account) -> list[tuple[WeightStory, float, float]]:
    """The weights that a search measured, most sensitive first, with the percent of a bar for sensitivity, on a scale
    of logarithms, and for the divergence predicted of what was chosen."""
    measured = [each for each in account.searched if each.account.influence is not None]
    if not measured:
        return []
    top = max(each.account.influence or 0.0 for each in measured)
    worst = max((each.chosen.divergence or 0.0 if each.chosen else 0.0 for each in measured), default=0.0)
    rows = []
    for each in sorted(measured, key=lambda each: -(each.account.influence or 0.0)):
        causes = each.chosen.divergence if each.chosen else None
        rows.append((each, _decades(each.account.influence or 0.0, top), _percent(causes or 0.0, worst)))
    return rows


def _decades(value: float, top: float) -> float:
    if value <= 0 or top <= 0:
        return 0.0
    return max(1.0, 100 * (1 + math.log10(value / top) / DECADES))


def _percent(value: float, whole: float) -> float:
    return 100 * value / whole if whole > 0 else 0.0


def points(story: WeightStory) -> list[dict[str, Any]]:
    """What a weight could have become as points of a chart, in percent: bytes to the right, divergence (else error)
    upwards, both by logarithms."""
    found = [each for each in offers(story) if each.alternative.what]
    harms = [_harm(each.alternative) for each in found]
    sizes = [max(1, each.alternative.size_bytes) for each in found]
    if len(found) < 2 or min(harms) <= 0:
        return []
    return [
        {"offer": each, "x": _between(size, sizes), "y": _between(harm, harms)}
        for each, size, harm in zip(found, sizes, harms, strict=True)
    ]


def _harm(alternative: Any) -> float:
    return float(alternative.error if alternative.divergence is None else alternative.divergence)


def _between(value: float, values: Sequence[float]) -> float:
    low, high = math.log(min(values)), math.log(max(values))
    return 50.0 if high - low < 1e-9 else 100 * (math.log(value) - low) / (high - low)


def _operators(receipt: Receipt) -> list[tuple[str, int, int]]:
    return [(name, before, after) for name, (before, after) in receipt.graphs.operators.items()]


def _touched(receipt: Receipt) -> Mapping[str, list[str]]:
    """What the kept steps did to each node, by its name."""
    found: dict[str, list[str]] = {}
    for report in receipt.steps:
        for entry in report.changed:
            nodes = [each for each in entry.details.get("nodes", ()) if isinstance(each, str)]
            for name in dict.fromkeys([entry.name, *nodes]):
                found.setdefault(name, []).append(f"{report.rewrite}: {entry.what}")
    return found


def _node_state(node: OutlineNode) -> str:
    """What became of a node, in a word for the eye and a class for the style."""
    if not node.now:
        return "gone"
    return "same" if node.now == node.operator else "other"


def _interval(report: StepReport) -> str:
    if report.divergence is None:
        return ""
    value = formats.significant(report.divergence)
    if report.interval is None:
        return value
    return f"{value} ({formats.significant(report.interval[0])} to {formats.significant(report.interval[1])})"


def _details(details: Mapping[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in details.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return formats.significant(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(each)}" for key, each in value.items())
    return ", ".join(map(_value, value)) if isinstance(value, list) else str(value)


def _shape(shape: Sequence[int] | None) -> str:
    return "" if shape is None else "×".join(map(str, shape)) or "scalar"


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    return f"{'−' if value < 0 else '+'}{formats.significant(abs(value))}"


@functools.cache
def _environment() -> Environment:
    """Jinja with everything escaped; a name that a template misspells is an error."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    made = Environment(loader=DictLoader(SOURCES), autoescape=True, finalize=_shown, **options)
    named: dict[str, Callable[..., Any]] = {
        "anchor": _anchor, "details": _details, "interval": _interval, "milliseconds": formats.milliseconds,
        "node_state": _node_state, "offers": offers, "points": points, "reasons": reasons, "seconds": formats.seconds,
        "shape": _shape, "shortened": formats.shortened, "signed": _signed, "significant": formats.significant,
        "size": formats.size, "smaller": formats.smaller, "verdict_on": verdict_on,
    }  # fmt: skip
    made.filters["millions"] = in_millions
    made.globals.update(named, OPEN_ROWS=OPEN_ROWS, UNIT=UNIT)
    return made


def _shown(value: Any) -> Any:
    """What stands for a value on the page: nothing for None, text without what cannot be seen."""
    if value is None:
        return ""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
