"""Reads packed symbols one bit after another, by docs/container.md alone: slow, plain, and without numpy's arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import partial
from math import isqrt

LEARNT_FROM = 8192
RATIOS = (64, 84, 111, 147, 194, 256, 338, 446, 588, 776, 1024)
LEANS = (-512, -256, -128, -38, 38, 128, 256, 512)


def single(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


class Coder:
    """The range coder."""

    def __init__(self, content: bytes) -> None:
        padded = content + bytes(-len(content) % 4)
        self.words = [each[0] for each in struct.iter_unpack("<I", padded)]
        self.at = 0
        self.low, self.range = 0, 2**64 - 1
        self.point = self.word() << 32 | self.word()

    def word(self) -> int:
        self.at += 1
        return self.words[self.at - 1] if self.at <= len(self.words) else 0

    def quantile(self) -> int:
        return ((self.point - self.low) % 2**64) // (self.range >> 24)

    def take(self, left: int, width: int) -> None:
        scale = self.range >> 24
        self.low = (self.low + scale * left) % 2**64
        self.range = scale * width
        while self.range < 2**32:
            self.range = self.range << 32
            self.low = (self.low << 32) % 2**64
            self.point = (self.point << 32 | self.word()) % 2**64

    def bit(self, chance: int) -> int:
        border = ((65536 - chance) * (2**24 - 2) >> 16) + 1
        found = int(self.quantile() >= border)
        self.take(border if found else 0, 2**24 - border if found else border)
        return found

    def symbol(self, frequencies: Sequence[int]) -> int:
        count = len(frequencies)
        if count < 2:
            return 0
        scale = single((2**24 - count) / single(float(sum(frequencies))))
        lefts = [int(single(single(float(sum(frequencies[:s]))) * scale)) + s for s in range(count)] + [2**24]
        quantile = self.quantile()
        found = next(s for s in range(count) if quantile < lefts[s + 1])
        self.take(lefts[found], lefts[found + 1] - lefts[found])
        return found

    def adaptive(self, count: int, prior: Sequence[int]) -> list[int]:
        weights, found, size = list(prior), [], 64
        while len(found) < count:
            total = sum(weights)
            frequencies = [max(1, each * 2**16 // total) for each in weights]
            block = [self.symbol(frequencies) for _ in range(min(size, count - len(found)))]
            for each in block:
                weights[each] += 32
            found += block
            size = min(2 * size, 2**14)
        return found


def bell(levels: int, center: int, scale: int) -> list[int]:
    heights = []
    for s in range(levels):
        away = min(2**20, 16 * 16 * abs(s - center) // max(1, scale))
        heights.append((2**20 // (256 + away**2)) ** 2 // 2**12 + 1)
    return [1 + 64 * levels * each // sum(heights) for each in heights]


def logarithm(x: int) -> int:
    mantissa, exponent = math.frexp(float(x))
    first = int((mantissa * 2 - 1) * 4096)
    return 512 * (exponent - 1) + math.floor(512 * math.log2(1 + first / 4096) + 0.5)


class Question:
    """Counts and weights of one question in one color."""

    def __init__(self) -> None:
        self.zeros = self.ones = 0
        self.counts: list[dict[int, list[int]]] = [{} for _ in range(4)]
        self.weights = [1280] * 4

    def chance(self, contexts: Sequence[int]) -> tuple[int, list[int]]:
        p = min(65504, max(32, (5 * self.ones + 2) * 65536 // (5 * (self.zeros + self.ones) + 4)))
        stretches = []
        for held, context in zip(self.counts, contexts, strict=True):
            n0, n1 = held.get(context, (0, 0))
            t = logarithm(65536 * n1 + 3 * p) - logarithm(65536 * n0 + 3 * (65536 - p))
            stretches.append(max(-8191, min(8191, t)))
        x = sum(weight * t for weight, t in zip(self.weights, stretches, strict=True)) // 4096
        x = max(-6144, min(6144, x))
        return min(65535, max(1, math.floor(65536 / (1 + 2 ** (-x / 512)) + 0.5))), stretches

    def learn(self, seen: Sequence[tuple[int, int, list[int], Sequence[int]]]) -> None:
        every = max(1, len(seen) // LEARNT_FROM)
        taken = seen[::every]
        divisor = max(1, min(isqrt(len(taken)), 16) if len(taken) < 256 else len(taken) // 16)
        for k in range(4):
            gain = sum((65536 * bit - chance) * stretches[k] for bit, chance, stretches, _ in taken)
            moved = max(-1024, min(1024, gain // (divisor << 18)))
            self.weights[k] = max(-28672, min(28672, self.weights[k] + moved))
        for bit, _, _, contexts in taken:
            for held, context in zip(self.counts, contexts, strict=True):
                held.setdefault(context, [0, 0])[bit] += 1
            self.zeros += 1 - bit
            self.ones += bit


def energy(value: int, mean: int) -> int:
    return sum(mean * each // 256 <= value for each in RATIOS)


def lean(total: int, known: int, mean: int) -> int:
    return sum((mean * each // 256) * max(1, known) <= 16 * total for each in LEANS)


class Grid:
    """Signed magnitudes that were read, (row, channel, y, x), and the contexts of a field."""

    def __init__(self, rows: int, channels: int, height: int, width: int, mean: int) -> None:
        self.size = rows, channels, height, width
        self.mean = mean
        self.values: dict[tuple[int, int, int, int], int] = {}

    def column(self, first: int, c: int, y: int, x: int) -> int:
        above = sum(abs(self.values[r, c, y, x]) for r in range(first))
        return (16 * above + 2 * self.mean) // (first + 2)

    def contexts(self, first: int, row: int, c: int, y: int, x: int) -> list[int]:
        _, channels, height, width = self.size
        mean = self.mean
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        edged = [(min(height - 1, max(0, v)), min(width - 1, max(0, u))) for v, u in around]
        smooth = (2 * self.column(first, c, y, x) + sum(self.column(first, c, v, u) for v, u in edged)) // 6
        if (x + y) % 2 == 0:
            held = [self.values[first - 1, c, y, x]] if first else [0]
            kernel = 6
        else:
            held = [self.values[row, c, v, u] for v, u in around if 0 <= v < height and 0 <= u < width]
            own = [c] if height * width >= 4 else list(range(channels))
            white = [(v, u) for v in range(height) for u in range(width) if (u + v) % 2 == 0]
            total = sum(abs(self.values[row, other, v, u]) for other in own for v, u in white)
            kernel = energy((32 * total + 3 * mean) // (2 * len(own) * len(white) + 3), mean)
        near = energy((16 * sum(map(abs, held)) + mean) // (len(held) + 1), mean)
        leaning = lean(sum(held), len(held), mean)
        place = y * width + x if height * width <= 49 else 0
        return [
            energy(smooth, mean) * 12 + near,
            near * 9 + leaning,
            kernel * 12 + energy(self.column(first, c, y, x), mean),
            place * 9 + leaning,
        ]


def numbers(content: bytes) -> tuple[list[int], list[int]]:
    """All numbers that the bytes may begin with, and where each ends."""
    found, ends, value, shift = [], [], 0, 0
    for at, byte in enumerate(content):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            ends.append(at + 1)
            value = shift = 0
    return found, ends


Field = tuple[int, int, int, int]


def answered(
    coder: Coder,
    questions: dict[tuple[int, int, int], Question],
    contexts: dict[Field, list[int]],
    color: int,
    key: tuple[int, int],
    own: list[Field],
) -> list[int]:
    """The answers of fields to one question."""
    if not own:
        return []
    question = questions.setdefault((color, *key), Question())
    seen = []
    for field in own:
        chance, stretches = question.chance(contexts[field])
        seen.append((coder.bit(chance), chance, stretches, contexts[field]))
    question.learn(seen)
    return [each[0] for each in seen]


def walked(
    coder: Coder, size: Field, mean: int, has_zero: bool, farthest: dict[int, int], magnitude: list[int]
) -> dict[Field, int]:
    """The class of every field."""
    rows, channels, height, width = size
    grid = Grid(rows, channels, height, width, mean)
    questions: dict[tuple[int, int, int], Question] = {}
    classes: dict[tuple[int, int, int, int], int] = {}
    least = -(-512 // (channels * height * width))
    most = max(least, -(-rows // 12))
    start = 0
    while start < rows:
        stop = min(rows, start + max(least, min(most, max(least, 1 + start // 4))))
        for color in (0, 1):
            fields = [
                (r, c, y, x)
                for r in range(start, stop) for c in range(channels) for y in range(height) for x in range(width)
                if (x + y) % 2 == color
            ]  # fmt: skip
            contexts = {field: grid.contexts(start, *field) for field in fields}

            asked = partial(answered, coder, questions, contexts, color)
            left = fields
            if has_zero:
                answers = asked((0, 0), left)
                classes.update((field, 0) for field, bit in zip(left, answers, strict=True) if not bit)
                left = [field for field, bit in zip(left, answers, strict=True) if bit]
            if farthest[-1] and farthest[1]:
                signs = dict(zip(left, asked((0, 1), left), strict=True))
            else:
                signs = dict.fromkeys(left, int(bool(farthest[1])))
            for own_sign in (-1, 1):
                own = [field for field in left if signs[field] == (own_sign > 0)]
                classes.update((field, own_sign) for field in own)
                for size in range(1, farthest[own_sign]):
                    answers = asked((own_sign, size), own)
                    own = [field for field, bit in zip(own, answers, strict=True) if bit]
                    classes.update((field, own_sign * (size + 1)) for field in own)
            for field in fields:
                grid.values[field] = magnitude[abs(classes[field])] * (1 if classes[field] > 0 else -1)
        start = stop
    return classes


def read_symbols(content: bytes, count: int, levels: int) -> list[int]:
    """Symbols in the order in which they are viewed: (rows, channels, height, width)."""
    head, ends = numbers(content)
    if head[0] == 0:
        return Coder(content[ends[2] :]).adaptive(count, bell(levels, head[1], head[2]))
    flags, center, mean, many = head[1:5]
    widths = [*head[5 : 5 + many], levels]
    channels, height, width = head[5 + many : 8 + many]
    coder = Coder(content[ends[7 + many] :])
    distances = [s - center + (0 if flags & 2 else s >= center) for s in range(levels)]
    starts = [0, 1]
    for each in widths[:-1]:
        starts.append(starts[-1] + each)
    sizes = [max(i for i, start in enumerate(starts) if start <= abs(d)) for d in distances]
    sign = [(d > 0) - (d < 0) for d in distances]
    shown = [1, *widths[:-1], *widths[-2:-1]] if many else [1, 1]
    magnitude = [4 * start + 2 * (shown[i] - 1) for i, start in enumerate(starts)]
    farthest = {s: max([size for size, own in zip(sizes, sign, strict=True) if own == s], default=0) for s in (-1, 1)}
    size4 = count // (channels * height * width), channels, height, width
    classes = walked(coder, size4, mean, bool(flags & 2), farthest, magnitude)
    order = sorted(classes)
    places = dict.fromkeys(order, 0)
    for size in range(len(starts)):
        own_distances = [abs(d) for d, own in zip(distances, sizes, strict=True) if own == size]
        room = max(own_distances, default=starts[size]) - starts[size] + 1
        if room > 1:
            held = [field for field in order if abs(classes[field]) == size]
            places.update(zip(held, coder.adaptive(len(held), [16] * room), strict=True))
    parted = enumerate(zip(distances, sign, sizes, strict=True))
    by_class = {(s * size, abs(d) - starts[size]): at for at, (d, s, size) in parted}
    return [by_class[classes[field], places[field]] for field in order]
