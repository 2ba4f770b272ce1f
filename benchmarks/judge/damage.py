"""Damaged variants of a model, naive on purpose: they share no code with the passes.

w -> round(w / s) s, the nearest of k centroids, 0 for the smallest, a sum of r singular vectors, w + noise,
a channel of zeros, w shuffled, b + shift; of all weights, of single ones, of those next to an input or output.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.judge.catalogue import Array
from benchmarks.judge.held import Held, biases, near_ends, weights

Change = Callable[[Held], Array]
WRECKED = 6  # single weights that are shuffled, at most
BITS = (8, 7, 6.5, 6, 5.5, 5, 4.5, 4, 3)
CALIBRATED = 64  # samples that ONNX Runtime's static quantization sees


@dataclass(frozen=True)
class Variant:
    """A damaged model. group: the family of damage."""

    name: str
    group: str
    model: bytes


def _rng(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def rounded(bits: float, *, per_channel: bool) -> Change:
    """Symmetric rounding to nearest with one scale a channel or a tensor; half a bit is a number between two."""
    top = round(2 ** (bits - 1)) - 1

    def change(held: Held) -> Array:
        values = held.values
        others = tuple(axis for axis in range(values.ndim) if axis != held.axis or not per_channel)
        scale = np.abs(values).max(axis=others, keepdims=True) / top
        return np.asarray(np.round(values / np.where(scale == 0, 1, scale)) * scale)

    return change


def clustered(count: int) -> Change:
    """The nearest of ``count`` centroids, found by 20 steps of Lloyd's from quantiles and an even grid."""

    def change(held: Held) -> Array:
        values = held.values.astype(np.float64)
        ordered = np.sort(values.ravel())
        sums = np.concatenate([[0.0], np.cumsum(ordered)])
        grid = np.linspace(ordered[0], ordered[-1], count)
        centres = (np.quantile(ordered, (np.arange(count) + 0.5) / count) + grid) / 2
        for _ in range(20):
            bounds = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
            bounds = np.concatenate([[0], bounds, [len(ordered)]])
            sizes = np.diff(bounds)
            centres = np.sort(np.where(sizes > 0, np.diff(sums[bounds]) / np.maximum(sizes, 1), centres))
        return np.asarray(centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)])

    return change


def pruned(share: float) -> Change:
    """The smallest magnitudes become zero."""

    def change(held: Held) -> Array:
        values = held.values
        return np.where(np.abs(values) <= np.quantile(np.abs(values), share), 0, values)

    return change


def low_rank(ratio: float) -> Change:
    """The largest singular vectors of the matrix (channels, everything else)."""

    def change(held: Held) -> Array:
        values = np.moveaxis(held.values, held.axis, 0)
        left, singular, right = np.linalg.svd(values.reshape(len(values), -1).astype(np.float64), full_matrices=False)
        rank = max(1, round(ratio * len(singular)))
        product = (left[:, :rank] * singular[:rank]) @ right[:rank]
        return np.moveaxis(product.reshape(values.shape), 0, held.axis)

    return change


def noisy(strength: float) -> Change:
    """Gaussian noise of ``strength`` standard deviations of the weight."""

    def change(held: Held) -> Array:
        values = held.values
        noise = _rng(held.tensor.name, strength).standard_normal(values.shape)
        return np.asarray(values + strength * values.std() * noise)

    return change


def shuffled(held: Held) -> Array:
    """All values at other places."""
    return _rng(held.tensor.name).permutation(held.values.ravel()).reshape(held.values.shape)


def shuffled_part(part: int, parts: int) -> Change:
    """One of ``parts`` equal pieces along the first axis shuffled: rows of a table, one expert of a stack."""

    def change(held: Held) -> Array:
        values = held.values.copy()
        piece = slice(part * len(values) // parts, (part + 1) * len(values) // parts)
        values[piece] = _rng(held.tensor.name, part).permutation(values[piece].ravel()).reshape(values[piece].shape)
        return values

    return change


def dead_channel(share: float) -> Change:
    """The channel at this quantile of the norms is zero: 0 the weakest, 1 the strongest."""

    def change(held: Held) -> Array:
        values = np.moveaxis(held.values.copy(), held.axis, 0)
        order = np.argsort(np.linalg.norm(values.reshape(len(values), -1), axis=1))
        values[order[round(share * (len(order) - 1))]] = 0
        return np.moveaxis(values, 0, held.axis)

    return change


def shifted(strength: float) -> Change:
    """Every bias moved by ``strength`` times their own spread, up or down."""

    def change(held: Held) -> Array:
        signs = _rng(held.tensor.name).choice([-1.0, 1.0], held.values.shape)
        return np.asarray(held.values + strength * (np.sqrt(np.mean(held.values**2)) + 1e-3) * signs)

    return change


OF_ALL: dict[str, tuple[str, Change]] = {
    "float16": ("round", lambda held: held.values.astype(np.float16)),
    **{f"channel-{bits}": ("round", rounded(bits, per_channel=True)) for bits in BITS},
    **{f"tensor-{bits}": ("round", rounded(bits, per_channel=False)) for bits in BITS},
    **{f"codebook-{count}": ("codebook", clustered(count)) for count in (256, 128, 64, 48, 32, 24, 16)},
    **{f"prune-{share}": ("prune", pruned(share / 100)) for share in (5, 10, 15, 20, 30, 40, 50, 70)},
    **{f"rank-{ratio}": ("rank", low_rank(ratio / 100)) for ratio in (90, 75, 50, 25)},
    **{f"noise-{strength}": ("noise", noisy(strength / 100)) for strength in (1, 2, 3, 5, 10, 20)},
}


def variants(original: bytes) -> Iterator[Variant]:
    """Every damage that changes something, each once; deterministic."""
    done = {original}
    for name, group, select, change in _plans(onnx.load_from_string(original)):
        model = onnx.load_from_string(original)
        for held in select(model):
            held.set(change(held))
        written = model.SerializeToString(deterministic=True)
        if written not in done:
            done.add(written)
            yield Variant(name, group, written)


def _plans(model: onnx.ModelProto) -> Iterator[tuple[str, str, Callable[[onnx.ModelProto], list[Held]], Change]]:
    for name, (group, change) in OF_ALL.items():
        yield name, group, weights, change
    for strength in (2, 5, 10, 20):
        yield f"biases-{strength}", "bias", biases, shifted(strength / 100)
    yield from _single_plans(weights(model))
    yield from _end_plans(near_ends(model))
    if any(held.is_state for held in weights(model)):
        for bits in (5, 4, 3):
            yield f"state-{bits}", "state", _of_state, rounded(bits, per_channel=False)
    yield "one-bias-100", "bias", lambda model: biases(model)[len(biases(model)) // 2 :][:1], shifted(1.0)


def _of_state(model: onnx.ModelProto) -> list[Held]:
    return [held for held in weights(model) if held.is_state]


def _single_plans(held: list[Held]) -> Iterator[tuple[str, str, Callable[[onnx.ModelProto], list[Held]], Change]]:
    """Damage of single weights: noise and a dead channel in three of them, some shuffled, parts of stacks."""
    sizes = [each.values.size for each in held]
    for place in sorted({0, len(held) // 2, int(np.argmax(sizes))}):
        for strength in (10, 30, 100):
            yield f"noise-{strength}-in-{place}", "one noisy", _only(place), noisy(strength / 100)
        for share in (0, 50, 100):
            yield f"dead-{share}-in-{place}", "dead channel", _only(place), dead_channel(share / 100)
    for place in sorted({round(i) for i in np.linspace(0, len(held) - 1, WRECKED)}):
        yield f"wrecked-{place}", "wrecked", _only(place), shuffled
        yield f"two-bits-{place}", "one at 2 bits", _only(place), rounded(2, per_channel=True)
    for place, each in enumerate(held):
        parts = min(len(each.values), 4)
        if each.reader == "Gather" or (each.values.ndim == 3 and each.reader in ("MatMul", "Einsum") and parts > 1):
            for part in range(parts):
                yield f"wrecked-{place}-part-{part}", "wrecked part", _only(place), shuffled_part(part, parts)


def _end_plans(
    ends: dict[str, list[str]],
) -> Iterator[tuple[str, str, Callable[[onnx.ModelProto], list[Held]], Change]]:
    for end, owners in ends.items():
        for bits in (4, 3, 2):
            yield f"{end}-{bits}", "ends", _owned(frozenset(owners)), rounded(bits, per_channel=True)


def _only(place: int) -> Callable[[onnx.ModelProto], list[Held]]:
    return lambda model: [weights(model)[place]]


def _owned(owners: frozenset[str]) -> Callable[[onnx.ModelProto], list[Held]]:
    return lambda model: [held for held in weights(model) if held.owner in owners]


def static_variants(model: Path, batches: Callable[[int], Iterator[dict[str, Array]]]) -> Iterator[Variant]:
    """ONNX Runtime's own static int8: min-max per channel, and a crude one per tensor from four samples.

    batches: feeds of so many calibration samples.
    """
    from onnxruntime.quantization import QuantType

    fine = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    crude = {"per_channel": False, "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    crude |= {"extra_options": {"ActivationSymmetric": True}}
    yield Variant("static-int8", "static", _static(model, batches(CALIBRATED), fine))
    yield Variant("static-int8-crude", "static", _static(model, batches(4), crude))


def _static(model: Path, feeds: Iterator[dict[str, Array]], options: dict[str, Any]) -> bytes:
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Array] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix="judge-static-") as folder:
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "static.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        q.quantize_static(str(prepared), str(result), Reader(), **options)
        return _declared_as(onnx.load(model), onnx.load(result))


def _declared_as(original: onnx.ModelProto, model: onnx.ModelProto) -> bytes:
    """The model with the original's declared inputs and outputs, which the quantizer's shape inference rewrites."""
    for side in ("input", "output"):
        known = {each.name: each for each in getattr(original.graph, side)}
        for each in getattr(model.graph, side):
            each.CopyFrom(known[each.name])
    return model.SerializeToString(deterministic=True)
