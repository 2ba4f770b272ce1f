"""What an output can be read as, from all of the original's values, and the lenses that belong to each reading.

    classes         p along an axis, sum 1 (softmax, CTC), its logarithm, or scores whose softmax is not flat
    probabilities   each in [0, 1] (sigmoid); of an output that has such channels beside others, these
    embedding       vectors of 32 or more like features, nothing of the above
    values          any floats, along every axis that may hold their channels
    labels          integers, booleans, strings

Several readings of one output stand side by side, and the worst counts: boxes do not drown the scores beside them,
unsure scores are read as classes and as values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.numerics.metrics import scales
from onnxcomp.numerics.metrics.arrays import Array, Floats, over_positions, shared_finite
from onnxcomp.numerics.metrics.class_scores import Form, distributions, kl_and_entropy
from onnxcomp.numerics.metrics.lenses import (
    BALANCED_FACTOR,
    CORRECTION_FACTOR,
    VALUES_FACTOR,
    ClassBalance,
    ClassByClass,
    ClassDivergence,
    CosineShift,
    LabelChange,
    Lens,
    OfChannels,
    OwnScale,
    RelativeError,
    class_factor,
    winners,
)
from onnxcomp.numerics.metrics.looks import (
    MIN_EMBEDDING_SIZE,
    Batches,
    Seen,
    are_chances,
    class_axes,
    class_look,
    unit_channels,
)

KINDS = ("classes", "values", "probabilities", "embedding", "labels", "ignore")
MAX_SPREAD_RATIO = 100.0  # variance of the largest over the median feature of an embedding; boxes beside scores: 1e4
BESIDE_CLASSES = 1 / 12  # of the values lens' factor: it guards against a regression taken for class scores
OF_STATE = 1 / 12  # what a state does is seen where it is used: at the outputs, on the model's own states
BESIDE_EMBEDDING = 1 / 72  # of a sentence encoder 15% of the power may go before its score does
PROBABILITY_SPREAD = 0.05
MAX_CHANNELS = 4096
RAREST = 3  # a class that fewer positions win than these counts as if so many did
MAX_CLASSES = 4096
MANY_CLASSES = 512  # of more no class is looked at by itself
PRESENT = 0.5  # positions' worth of a class that count as some


@dataclass(frozen=True, eq=False)
class Output:
    """What the original's output was taken for, and what it is looked at through.

    kind: one of the words above, of the first reading. axis: of the classes, counted without the sample axis, None
    where there are none; form: how they are given. entropy: H in nats. silent: why it shows nothing, "" where it does.
    """

    kind: str
    lenses: tuple[Lens, ...] = ()
    axis: int | None = None
    form: Form | None = None
    entropy: float = 0.0
    silent: str = ""

    @property
    def has_classes(self) -> bool:
        """Whether the output says which of several classes wins."""
        return self.form is not None and self.form != "each"


def describe(
    batches: Batches,
    *,
    channel_axes: Sequence[int] = (),
    floor: float = scales.CONSTANT_FLOOR,
    asked: str | None = None,
    are_numbers: bool = False,
    linear: bool = True,
) -> Output:
    """What an output looks like, from all of the original's values.

    channel_axes: where its channels may lie, without the sample axis. floor: the least spread, as a share of a
    channel's size, that errors are held against. asked: the user's word, which beats every guess.
    are_numbers: integers that were made by rounding, such as pixels or sound. linear: whether a linear operator
    computes the output.
    """
    if asked == "ignore":
        return Output("ignore", silent="left out on request")
    blocks = [each.block for each in batches()]
    first = blocks[0] if blocks else np.zeros((0, 1))
    silent = _silence(blocks)
    if asked == "labels" or (asked is None and _holds_labels(first) and not are_numbers):
        return Output("labels", (LabelChange(),), silent=silent)
    if not sum(block.size for block in blocks) or len({block.ndim for block in blocks}) != 1:
        return Output("values", (_errors(batches, None, floor),) if not silent else (), silent=silent)
    found = _read(batches, steady(batches, channel_axes), floor, asked, linear)
    return Output(found.kind, found.lenses, found.axis, found.form, found.entropy, silent)


def of_state(output: Output) -> Output:
    """An output that is a state, whose effect is seen elsewhere: its values as a whole, held loosely."""
    kept = [
        replace(each, factor=each.factor * OF_STATE, by_channel=False)
        for each in output.lenses
        if isinstance(each, RelativeError) and each.name == "values"
    ]
    return replace(output, kind="state", lenses=tuple(kept), axis=None, form=None)


def _holds_labels(block: Array) -> bool:
    """Integers, booleans, strings; but for uint8, which is for pictures."""
    return block.dtype.kind in "biOSU" or (block.dtype.kind == "u" and block.dtype.itemsize > 1)


def _silence(blocks: Sequence[Array]) -> str:
    """Why an output shows nothing, or ""."""
    if not sum(block.size for block in blocks):
        return "no values"
    if blocks[0].dtype.kind not in "biOSUuc" and not any(np.isfinite(block).any() for block in blocks):
        return "not finite"
    first = next(block[:1] for block in blocks if len(block))
    same = all(block.shape[1:] == first.shape[1:] and _equal(block, first) for block in blocks)
    return "constant" if same and sum(map(len, blocks)) > 1 else ""


def _equal(block: Array, first: Array) -> bool:
    if block.dtype.kind in "OSUbiu":
        return bool((block == first).all())
    with np.errstate(invalid="ignore"):
        return bool(np.allclose(block, first, rtol=scales.ROUNDING, atol=0, equal_nan=True))


def steady(batches: Batches, axes: Sequence[int]) -> list[int]:
    """Those of the axes along which all batches are of one size, small enough for channels. Where positions have
    weights they lie on axis 0, and no channels do."""
    sizes: dict[int, set[int]] = {}
    for block, weights, *_ in batches():
        for axis in (each for each in axes if each < block.ndim - 1):
            sizes.setdefault(axis, set()).add(block.shape[1 + axis] if axis or weights is None else 0)
    return [axis for axis, found in sizes.items() if len(found) == 1 and 0 < max(found) <= MAX_CHANNELS]


def _read(batches: Batches, channel_axes: Sequence[int], floor: float, asked: str | None, linear: bool) -> Output:
    """The readings of an output of floats."""
    blocks = [each.block for each in batches()]
    beside = [_errors(batches, axis, floor) for axis in channel_axes or (None,)]
    classes = None if asked in ("values", "probabilities", "embedding") else _classes(batches, blocks, asked, linear)
    if classes is not None and classes.kind == "classes":
        guard = () if classes.form in ("probability", "log") else _scaled(beside, BESIDE_CLASSES)
        return Output("classes", (*classes.lenses, *guard), classes.axis, classes.form, classes.entropy)
    if asked == "probabilities" or (asked is None and are_chances(batches)):
        return _probabilities(batches, channel_axes)
    if asked == "embedding" or (asked is None and classes is None and _like_embedding(batches, blocks, beside)):
        found = scales.basis(batches)
        if found is not None:
            pooled = (replace(each, by_channel=False) for each in _scaled(beside, BESIDE_EMBEDDING))
            return Output("embedding", (CosineShift(*found), *pooled))
    lenses = [*beside, *_of_scale(batches, beside), *_of_correction(batches, beside, floor)]
    lenses += [each for axis in channel_axes for each in _of_unit_channels(batches, axis)]
    if classes is None:
        return Output("values", tuple(lenses))
    return Output("values", (*lenses, *classes.lenses), classes.axis, classes.form, classes.entropy)


def _classes(batches: Batches, blocks: Sequence[Array], asked: str | None, linear: bool) -> Output | None:
    """The reading as class scores: kind "classes" where they are nothing else, "values" where they may be."""
    for axis in steady(batches, class_axes(blocks[0].ndim)):
        look = class_look(batches, axis, forced=asked == "classes", linear=linear)
        if look is not None:
            lenses, entropy = _class_lenses(batches, look.form, axis)
            return Output("classes" if look.sure else "values", lenses, axis, look.form, entropy)
    return None


def _class_lenses(batches: Batches, form: Form, axis: int | None) -> tuple[tuple[Lens, ...], float]:
    """KL over all positions, and with the same weight for each winning class, where enough positions are won by each;
    and the mean entropy: of maps and sequences over classes where that is larger, since most of their positions may be
    as good as given."""
    blocks = [block for block, *_ in batches()]
    size = 2 if form == "each" else blocks[0].shape[1 + (axis or 0)]
    winning = (winners(shared_finite(block, block)[0], form, axis).ravel() for block in blocks)
    counts = np.asarray(sum(np.bincount(each, minlength=size) for each in winning), dtype=np.float64)
    won = np.count_nonzero(counts)
    is_known = won > 1 and counts.sum() >= RAREST * won and len(counts) <= MAX_CLASSES
    balance = balanced(counts) if is_known else None
    entropy = _entropy(batches, form, axis, None)
    if balance is None:
        return (ClassDivergence(form, axis, class_factor(entropy)),), entropy
    if any(block.ndim > 2 for block in blocks):
        entropy = max(entropy, _entropy(batches, form, axis, balance))
    both_ways = 2.0 if form == "each" else 1.0
    lenses = (
        ClassDivergence(form, axis, class_factor(entropy)),
        ClassDivergence(form, axis, both_ways * BALANCED_FACTOR, balance),
    )
    if form == "each" or size > MANY_CLASSES:
        return lenses, entropy
    weights = shares(batches, form, axis)
    return (*lenses, ClassByClass(form, axis, weights), ClassBalance(form, axis, masses(batches, form, axis))), entropy


def masses(batches: Batches, form: Form, axis: int | None) -> Floats:
    """What a position gives to each class on the average, (classes,); of all positions together ``RAREST`` at least."""
    p = [distributions(form, axis, shared_finite(block, block)[0]) for block, *_ in batches()]
    count = sum(each.shape[0] * each.shape[1] for each in p)
    mass = np.asarray(sum(each.sum(axis=(0, 1)) for each in p))
    return np.asarray(np.maximum(mass, RAREST) / max(1, count))


def shares(batches: Batches, form: Form, axis: int | None) -> Floats:
    """Weights of the classes, (classes,): the mean over those that there are of what each position counts against all
    that there is of the class, in positions; less than ``RAREST`` positions count as so many."""
    mass, count = np.zeros(1), 0
    for block, *_ in batches():
        p = distributions(form, axis, shared_finite(block, block)[0])
        mass, count = mass + p.sum(axis=(0, 1)), count + p.shape[0] * p.shape[1]
    present = mass >= PRESENT
    weights = np.where(present, count / np.maximum(mass, RAREST), 0.0)
    return np.asarray(weights / max(1, np.count_nonzero(present)))


def _entropy(batches: Batches, form: Form, axis: int | None, balance: Floats | None) -> float:
    """H in nats; balance: weights of the positions that each class wins."""
    found = []
    for block, weights, *_ in batches():
        both = shared_finite(block, block)
        own = kl_and_entropy(form, axis, *both)[1]
        own = own if balance is None else own * balance[winners(both[0], form, axis)]
        found.append(over_positions(own, weights))
    return float(np.concatenate(found).mean())


def balanced(counts: Floats) -> Floats:
    """Weights of the positions that each class wins, (classes,): the mean over all positions is 1, each class that
    at least ``RAREST`` positions win has the same sum."""
    held = np.maximum(counts, RAREST)
    weights = np.where(counts > 0, 1 / held, 1 / RAREST)
    return np.asarray(weights * counts.sum() / (weights * counts).sum())


def _probabilities(batches: Batches, channel_axes: Sequence[int]) -> Output:
    """Elements in [0, 1]: as chances of their own, and as values with a spread of at least ``PROBABILITY_SPREAD``."""
    lenses, entropy = _class_lenses(batches, "each", None)
    found = list(lenses)
    for axis in channel_axes or (None,):
        held = scales.spread(batches, axis)
        variance = np.maximum(held.variance, PROBABILITY_SPREAD**2)
        found.append(RelativeError(axis, variance, held.varies, factor=VALUES_FACTOR / 6))
    return Output("probabilities", tuple(found), None, "each", entropy)


def _of_unit_channels(batches: Batches, axis: int) -> list[Lens]:
    """The lenses of probabilities for those channels of an output that are some, beside others that are none."""
    chosen = _units_beside_others(batches, axis)
    if not len(chosen):
        return []

    def only() -> list[Seen]:
        return [Seen(np.take(each.block, chosen, axis=1 + axis), each.weights) for each in batches()]

    return [OfChannels(axis, chosen, lens) for lens in _class_lenses(only, "each", None)[0]]


def _units_beside_others(batches: Batches, axis: int) -> Array:
    """The channels that hold probabilities where there are others too; else none."""
    found = unit_channels(batches, axis)
    return np.flatnonzero(found) if not found.all() else np.zeros(0, np.int64)


def _errors(batches: Batches, axis: int | None, floor: float) -> RelativeError:
    """The lens of values along one axis."""
    held = scales.spread(batches, axis, floor=floor)
    return RelativeError(axis, held.variance, held.varies)


def _scaled(lenses: Sequence[RelativeError], share: float) -> tuple[RelativeError, ...]:
    """The same lenses where they only stand beside another reading."""
    return tuple(replace(each, factor=each.factor * share) for each in lenses)


def _like_embedding(batches: Batches, blocks: Sequence[Array], beside: Sequence[RelativeError]) -> bool:
    """Whether the last axis holds 32 or more features of one kind. Nothing that has the shape of an input is an
    embedding of it, nor do boxes beside scores have features of one kind, on whichever axis they lie."""
    rank = blocks[0].ndim
    if rank not in (2, 3) or blocks[0].shape[-1] < MIN_EMBEDDING_SIZE or not steady(batches, [rank - 2]):
        return False
    if any(each.base is not None for each in batches()):
        return False
    named = {each.axis: each.variance for each in beside if each.axis is not None}
    if any(axis != rank - 2 and len(_units_beside_others(batches, axis)) for axis in named):
        return False
    return all(each.max() <= MAX_SPREAD_RATIO * np.median(each) for each in named.values())


def _of_scale(batches: Batches, beside: Sequence[RelativeError]) -> list[Lens]:
    """Each sample against its own scale, where it has positions enough to have one."""
    first = beside[0]
    return [OwnScale(first.axis, first.variance)] if scales.own_scale(batches, first.axis) else []


def _of_correction(batches: Batches, beside: Sequence[RelativeError], floor: float) -> list[Lens]:
    """Errors against what the output adds to an input of its shape: a denoiser's work, not the sound itself."""
    if any(each.base is None for each in batches()):
        return []
    first = beside[0]
    added = scales.spread(batches, first.axis, floor=floor, of_base=True)
    if added.variance.mean() >= first.variance.mean():
        return []
    return [
        RelativeError(first.axis, added.variance, added.varies, CORRECTION_FACTOR, name="correction", by_channel=False)
    ]
