"""The front page: what came of the run in a few figures, and what a reader should know beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxcomp import formats
from onnxcomp.input_shapes import shape_words
from onnxcomp.judgement import BAD, GOOD, PLAIN, limit_of
from onnxcomp.receipt import Receipt

WORK_NOISE = 1e-3  # of multiplications, which are counted
NAMED = 3  # of several, those that are named


@dataclass(frozen=True)
class Fact:
    """One figure. label: what it is of. value: the figure; remark: whether that is better or worse, with its tone.
    details: lines below it. share: of a budget or of what it was, from 0 to 1, drawn as a bar with these words."""

    label: str
    value: str
    remark: str = ""
    tone: str = PLAIN
    details: tuple[str, ...] = ()
    share: float | None = None
    share_words: str = ""


def front(receipt: Receipt) -> list[Fact]:
    """The figures of the front page, as far as the receipt has them."""
    found = [_size(receipt), _outputs(receipt), _latency(receipt), _loading(receipt), _work(receipt), _needs(receipt)]
    return [each for each in found if each is not None]


def _size(receipt: Receipt) -> Fact:
    before, after = int(receipt.source["bytes"]), int(receipt.result["bytes"])
    words = formats.smaller(before, after)
    tone = GOOD if after < before and words != "same size" else BAD if words.endswith("larger") else PLAIN
    left = after / before if before else 1.0
    return Fact(
        "Size",
        f"{formats.size(before)} → {formats.size(after)}",
        words,
        tone,
        (f"{before:,} → {after:,} bytes",),
        min(1.0, left),
        f"{left:.1%} of the bytes are left",
    )


def _outputs(receipt: Receipt) -> Fact:
    verdict, metric = receipt.verdict, str(receipt.metric["name"])
    value, limit = verdict.get("divergence"), limit_of(receipt)
    if value is None:
        return Fact("Outputs", "not compared", "", BAD, _judged(receipt))
    figure = formats.significant(float(value))
    allowed = "without a limit" if limit is None else f"of {formats.significant(limit)} allowed"
    if verdict.get("score") is not None:
        score = f"{verdict['original_score']:.4g} → {verdict['score']:.4g}"
        details = (*_interval(verdict), *_judged(receipt))
        return Fact(f"Outputs ({metric})", score, f"a drop of {figure} {allowed}", _tone(verdict), details)
    share = float(value) / limit if limit and math.isfinite(float(value)) else None
    return Fact(
        f"Outputs ({metric} from the original)",
        figure,
        allowed,
        _tone(verdict),
        (*_agreement(verdict), *_interval(verdict), *_judged(receipt)),
        None if share is None else min(1.0, share),
        "" if share is None else f"{share:.0%} of the budget is taken up",
    )


def _tone(verdict: Mapping[str, Any]) -> str:
    return GOOD if verdict.get("passed") else BAD


def _agreement(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    share, samples = verdict.get("agreement"), int(verdict.get("samples") or 0)
    if share is None:
        return ()
    if not formats.is_of_samples(float(share), samples):
        return (f"same winning class on {float(share):.1%} of the places in {samples:,} samples",)
    return (f"same winning class on {round(float(share) * samples):,} of {samples:,} samples ({float(share):.1%})",)


def _interval(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (verdict.get("interval") or [None, None])[:2]
    if low is None or high is None or low == high:
        return ()
    return (f"95% interval {formats.significant(low)} to {formats.significant(high)}",)


def _judged(receipt: Receipt) -> tuple[str, ...]:
    data = receipt.data
    checked = int(data["verification_samples"])
    if data["random"]:
        seen = f"on {formats.count(checked, 'batch')} of random inputs"
    elif checked == data["samples"]:
        seen = f"on the {formats.count(checked, 'sample')} of calibration itself"
    else:
        seen = f"on {formats.count(checked, 'sample')} that calibration did not see"
    outputs = receipt.verdict.get("outputs") or {}
    words = [f"{name} judged as {each.get('kind')}, by {each.get('measure')}" for name, each in outputs.items()]
    more = [f"and {len(words) - NAMED} outputs more"] if len(words) > NAMED else []
    return (seen, *words[:NAMED], *more)


def _latency(receipt: Receipt) -> Fact | None:
    measured = receipt.measured
    if "latency_ms_ratio" not in measured:
        return None
    before, after = (formats.milliseconds(measured[f"latency_ms_{which}"]) for which in ("original", "result"))
    words, tone = _times(float(measured["latency_ms_ratio"]), formats.NOISE)
    shapes = receipt.data.get("shapes") or {}
    origin = receipt.data.get("shapes_from")
    details = [f"at {shape_words(shapes)}" + (f" from {origin}" if origin else "")] if shapes else []
    details.append(f"{_threads(receipt)}on {receipt.target}")
    return Fact("Latency of one run", f"{before} → {after}", words, tone, tuple(details))


def _threads(receipt: Receipt) -> str:
    number = receipt.measured.get("threads") or receipt.machine.get("threads")
    return f"{formats.count(int(number), 'thread')} " if number else ""


def _loading(receipt: Receipt) -> Fact | None:
    measured = receipt.measured
    if "load_s_ratio" not in measured:
        return None
    before, after = (formats.milliseconds(1e3 * measured[f"load_s_{which}"]) for which in ("original", "result"))
    noise = max(formats.LOAD_NOISE, float(measured.get("load_s_noise", 0.0)))
    words, tone = _times(float(measured["load_s_ratio"]), noise)
    details = []
    if "load_peak_bytes_ratio" in measured:
        first, second = (formats.size(measured[f"load_peak_bytes_{which}"]) for which in ("original", "result"))
        details.append(f"memory at the peak of it {first} → {second}")
    return Fact("Loading", f"{before} → {after}", words, tone, tuple(details))


def _times(ratio: float, noise: float) -> tuple[str, str]:
    """What a ratio of times comes to, and whether that is good; noise: differences that are none."""
    words = formats.faster(ratio, noise)
    return words, GOOD if words.endswith("faster") else BAD if words.endswith("SLOWER") else PLAIN


def _work(receipt: Receipt) -> Fact | None:
    macs = receipt.graphs.macs
    if len(macs) != 2 or not macs[0]:
        return None
    before, after = macs
    ratio = after / before
    tone = GOOD if ratio < 1 - WORK_NOISE else BAD if ratio > 1 + WORK_NOISE else PLAIN
    words = "unchanged" if tone == PLAIN else f"{ratio:.1%} of before"
    return Fact("Multiplications of one run", f"{in_millions(before)} → {in_millions(after)}", words, tone)


def in_millions(number: int) -> str:
    """A number of operations in thousands, millions or billions."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{formats.significant(number / factor)} {unit}"
    return str(number)


def _needs(receipt: Receipt) -> Fact:
    oldest = receipt.result.get("needs_onnxruntime")
    own = list(receipt.result.get("contributed_operators") or [])
    details = [f"opset {receipt.result['opset']}, IR {receipt.result['ir_version']}, made for {receipt.target}"]
    if own:
        more = f" and {len(own) - NAMED} more" if len(own) > NAMED else ""
        details.append(f"with ONNX Runtime's own {', '.join(own[:NAMED])}{more}")
    return Fact("Runs on", f"ONNX Runtime {oldest}+" if oldest else "no release known yet", "", PLAIN, tuple(details))
