"""What a run came to, in a block of about eight lines, worst news not hidden:

lenet5.onnx -> out/lenet5.opt.onnx: PASS, 55 s
  size      1.73 MB -> 63.7 kB    27.1x smaller
  outputs   same top class on all 250 unseen samples; error 0.0153 of 0.03 allowed (judged as class scores)
  latency   0.107 ms -> 0.101 ms  1.06x faster  (at 1x1x28x28 from calibration data, 1 thread)
  loading   33.4 ms -> 52.4 ms    1.57x SLOWER, 9.66 MB more memory
  runs on   ONNX Runtime 1.12 or newer; judged on cpu
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxcomp import formats
from onnxcomp.budget import LARGEST_DROP
from onnxcomp.input_shapes import shape_words
from onnxcomp.judgement import judgement
from onnxcomp.receipt import Receipt

LEAST_MEMORY = 0.1  # of the peak; less is not worth a word
NAMED = 3  # operators named in a line
GUESSED = "guessed"  # as CalibrationData.shapes_from
KINDS = {"classes": "class scores", "probabilities": "probabilities", "embedding": "an embedding", "labels": "labels"}

Rows = list[tuple[str, str]]


def heading(receipt: Receipt, written: Sequence[Path], *, replayed: bool = False) -> str:
    """``net.onnx -> out/net.opt.onnx: PASS, 18 s``."""
    source = Path(str(receipt.source.get("path") or "")).name or "the model"
    made = str(written[0]) if written else str(receipt.result.get("path", ""))
    took = receipt.measured.get("seconds")
    words = [judgement(receipt).word] if not replayed else ["REPLAYED"]
    if took is not None and not replayed:
        words.append(formats.seconds(took))
    return f"{source} -> {made}: {', '.join(words)}"


def rows(receipt: Receipt, *, verbose: bool = False) -> Rows:
    """The lines below the heading, as names and words."""
    pairs = [*_size(receipt, verbose=verbose), *costs(receipt.measured, receipt.data)]
    width = max(len(pair) for _, pair, _ in pairs)
    found = {name: f"{pair:<{width}}  {words}" for name, pair, words in pairs}
    made = [("size", found.pop("size")), ("outputs", outputs(receipt)), *found.items()]
    made.append(("runs on", _runs_on(receipt, verbose=verbose)))
    return made + labelled("MISSED", receipt.missed)


def labelled(label: str, lines: Sequence[object]) -> Rows:
    """Several lines of which only the first is labelled."""
    return [(label if index == 0 else "", str(line)) for index, line in enumerate(lines)]


def _size(receipt: Receipt, *, verbose: bool) -> Iterator[tuple[str, str, str]]:
    before, after = int(receipt.source["bytes"]), int(receipt.result["bytes"])
    exact = f" ({before:,} -> {after:,} bytes)" if verbose else ""
    words = formats.smaller(before, after).replace("larger", "LARGER")
    yield "size", f"{formats.size(before)} -> {formats.size(after)}", words + exact


def costs(measured: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Latency and loading of two models: name, before and after, what that comes to."""
    if "latency_ms_ratio" in measured:
        how = conditions(data, measured.get("threads"))
        words = formats.faster(measured["latency_ms_ratio"]) + (f"  ({how})" if how else "")
        yield "latency", _pair(measured, "latency_ms", 1.0), words
    if "load_s_ratio" in measured:
        noise = max(formats.LOAD_NOISE, float(measured.get("load_s_noise", 0.0)))
        words = formats.faster(measured["load_s_ratio"], noise)
        if words == "unchanged" and noise > formats.LOAD_NOISE:
            words = f"unchanged within the noise of {noise:.0%}"
        yield "loading", _pair(measured, "load_s", 1e3), words + _memory(measured)


def _pair(measured: Mapping[str, Any], key: str, scale: float) -> str:
    before, after = (formats.milliseconds(scale * measured[f"{key}_{which}"]) for which in ("original", "result"))
    return f"{before} -> {after}"


def _memory(measured: Mapping[str, Any]) -> str:
    if "load_peak_bytes_ratio" not in measured:
        return ""
    before, after = measured["load_peak_bytes_original"], measured["load_peak_bytes_result"]
    if abs(after - before) < LEAST_MEMORY * before:
        return ""
    return f", {formats.size(abs(after - before))} {'more' if after > before else 'less'} memory"


def conditions(data: Mapping[str, Any], threads: int | None) -> str:
    """``at 1x3x224x224 from calibration data, 1 thread``: what latencies were measured on."""
    shapes, origin = data.get("shapes") or {}, str(data.get("shapes_from", ""))
    found = [shapes_words(shapes, origin)] if shapes else []
    return ", ".join([*found, *([formats.count(threads, "thread")] if threads else [])])


def shapes_words(shapes: Mapping[str, Sequence[int]], origin: str) -> str:
    """``at 1x3x224x224 from calibration data``; where they are guessed, what says others."""
    if origin == GUESSED:
        return f"at {shape_words(shapes)}, guessed: --input-shape says another"
    return f"at {shape_words(shapes)} from {origin}"


def outputs(receipt: Receipt) -> str:
    """How the outputs were judged and how they came out."""
    verdict, metric = receipt.verdict, str(receipt.metric["name"])
    joint = ", " if metric == "sqnr" else " of "
    error = f"{_error(verdict, metric)}{joint}{_allowed(verdict, metric)}"
    if not verdict.get("verified", True):
        return "nothing could be compared: see the notes"
    if receipt.data["random"]:
        return f"{_error(verdict, metric)} on random inputs, which show breakage only"
    where = samples(receipt)
    if verdict.get("score") is not None:
        return f"{_score(verdict, metric)} on {where}"
    judged = _judged(verdict, metric)
    share = verdict.get("agreement")
    kinds = {each["kind"] for each in verdict["outputs"].values()}
    if share is None:
        return f"{error} on {where}{judged}"
    if not kinds or "classes" in kinds:
        return f"same top class on {_share(share, where, int(verdict['samples']))}; {error}{judged}"
    return f"{error} on {where}{judged}; if these are class scores, the top class is the same on {share:.1%}"


def _share(share: float, where: str, count: int) -> str:
    if share >= 1.0:
        return f"all {where}"
    return f"{share:.1%} of {'' if formats.is_of_samples(share, count) else 'the places in '}{where}"


def samples(receipt: Receipt) -> str:
    """``250 unseen samples``."""
    number = int(receipt.data["verification_samples"])
    distinct = receipt.metric.get("evidence", {}).get("distinct", number)
    few = "" if distinct == number else f" ({distinct:,} distinct)"
    if number == receipt.data["samples"]:  # too few to keep some apart
        return f"{number:,} samples{few} of the calibration itself"
    return f"{number:,} unseen samples{few}"


def _error(verdict: Mapping[str, Any], metric: str) -> str:
    value = verdict["divergence"]
    if value is None:
        return "the model failed"
    if metric == "sqnr":
        return f"signal to noise {formats.decibels(value)}" if value > 0 else "no error"
    name = "error" if metric == "divergence" else f"{metric} error"
    return f"{name} {formats.significant(value)}"


def _allowed(verdict: Mapping[str, Any], metric: str) -> str:
    limit = verdict["limit"]
    if limit is None or limit >= LARGEST_DROP:
        return "any allowed"
    return f"at least {formats.decibels(limit)} wanted" if metric == "sqnr" else f"{formats.significant(limit)} allowed"


def _score(verdict: Mapping[str, Any], metric: str) -> str:
    before, after, drop = verdict["original_score"], verdict["score"], verdict["divergence"]
    change = "a gain of" if drop < 0 else "a drop of"
    held = verdict.get("beside")
    beside = f"; error {formats.significant(held[0])} of {formats.significant(held[1])} allowed" if held else ""
    words = f"{metric} {before:.4g} -> {after:.4g}, {change} {formats.significant(abs(drop))}"
    return f"{words} ({_allowed(verdict, metric)}){beside}"


def _judged(verdict: Mapping[str, Any], metric: str) -> str:
    """What the worst output was taken for."""
    found = verdict["outputs"]
    if not found:
        return ""
    name, worst = max(found.items(), key=lambda each: each[1]["divergence"] or 0.0)
    kind = KINDS.get(worst["kind"], worst["kind"])
    measure = "" if worst["measure"] in (worst["kind"], metric) else f", worst by {worst['measure']}"
    which = "" if len(found) == 1 else f"{name}, the worst of {len(found)} outputs, "
    return f" ({which}judged as {kind}{measure})"


def _runs_on(receipt: Receipt, *, verbose: bool) -> str:
    oldest = receipt.result.get("needs_onnxruntime")
    version = f"ONNX Runtime {oldest} or newer" if oldest else "a newer ONNX Runtime than any known"
    # In which version ONNX Runtime's own operators came, and changed, no opset says.
    own = receipt.result.get("contributed_operators", [])
    shown = own if verbose else own[:NAMED]
    more = f" and {len(own) - NAMED} more" if len(own) > len(shown) else ""
    needs = f" that has {', '.join(shown)}{more}" if own else ""
    exact = f" (opset {receipt.result['opset']}, IR {receipt.result['ir_version']})" if verbose else ""
    return f"{version}{needs}{exact}; judged on {receipt.target}"
