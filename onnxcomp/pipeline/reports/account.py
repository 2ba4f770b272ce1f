"""A receipt in one line, and in a few, for who looks at a result in Python."""

from __future__ import annotations

from pathlib import Path

from onnxcomp import formats
from onnxcomp.budget import LARGEST_DROP
from onnxcomp.judgement import judgement
from onnxcomp.receipt import Receipt
from onnxcomp.shown import Row

KINDS = (("latency", "latency_ms", 1.0), ("load time", "load_s", 1e3))  # row, figure, milliseconds of its unit


def headline(receipt: Receipt) -> str:
    """``net.onnx: 1,725,602 -> 87,714 bytes, 19.7x smaller, PASS``."""
    return f"{_name(receipt)}: {_size(receipt)}, {judgement(receipt).word}"


def rows(receipt: Receipt) -> list[Row]:
    """What the result comes to, the missed goals and the notes."""
    found: list[Row] = [("size", _size(receipt)), ("outputs", _outputs(receipt))]
    for name, key, factor in KINDS:
        before, after = (receipt.measured.get(f"{key}_{side}") for side in ("original", "result"))
        if before and after:
            loads = max(formats.LOAD_NOISE, receipt.measured.get("load_s_noise", 0.0))
            noise = loads if key == "load_s" else formats.NOISE
            words = formats.faster(after / before, noise)
            found.append((name, f"{_time(factor * before)} -> {_time(factor * after)}, {words}"))
    kept = [each.rewrite for each in receipt.steps if each.decision.startswith("kept")]
    found.append(("changed by", ", ".join(dict.fromkeys(kept)) or "nothing"))
    oldest = receipt.result.get("needs_onnxruntime")
    found.append(("runs on", f"ONNX Runtime {oldest}+, {receipt.target}" if oldest else receipt.target))
    found += [("goal missed", each) for each in receipt.missed]
    found += [("note", each) for each in receipt.notes]
    return found


def _name(receipt: Receipt) -> str:
    return Path(str(receipt.source.get("path") or "")).name or "model"


def _size(receipt: Receipt) -> str:
    before, after = int(receipt.source["bytes"]), int(receipt.result["bytes"])
    return f"{before:,} -> {after:,} bytes, {formats.smaller(before, after)}"


def _outputs(receipt: Receipt) -> str:
    """How far they are from the original's, on how many samples."""
    verdict, metric = receipt.verdict, str(receipt.metric["name"])
    if not verdict.get("verified", True):
        return "not verified: nothing could be compared"
    value, limit = verdict.get("divergence"), verdict.get("limit")
    drawn = ", drawn at random, which show breakage only" if receipt.data["random"] else ""
    samples = f"on {formats.count(int(verdict['samples']), 'sample')}{drawn}"
    if value is None:
        return f"the model failed {samples}"
    is_limited = limit is not None and limit < LARGEST_DROP
    allowed = f" of {formats.significant(float(limit))} allowed" if limit is not None and is_limited else ""
    if verdict.get("score") is not None:
        words = f"{metric} {verdict['original_score']:.4g} -> {verdict['score']:.4g}, a drop of"
    else:
        words = metric
    same = verdict.get("agreement")
    agreeing = "" if same is None else f"; the winning class is the same on {same:.1%}"
    return f"{words} {formats.significant(value)}{allowed} {samples}{agreeing}"


def _time(milliseconds: float) -> str:
    return formats.milliseconds(milliseconds)
