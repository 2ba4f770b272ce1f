"""What is known about a symbol before it is read: symbols read before it, counted and quantized.

    rows are read in blocks, and in each block one color of a chessboard after the other:

        energy of the column     over the rows that were read
        the four neighbours      on the grid of a kernel, or of an image behind a dense layer; known for black fields
        energy of the kernel     or of the row, over the white fields

Energies are averages of magnitudes in 16ths, with a few of the mean beside them, and are told apart by their ratio to
the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape4 = tuple[int, int, int, int]

FINE = 16  # parts of a magnitude
RATIOS = (64, 84, 111, 147, 194, 256, 338, 446, 588, 776, 1024)  # to the mean in 256ths: a third more each
LEANS = (-512, -256, -128, -38, 38, 128, 256, 512)  # of the neighbours' average, in 256ths of the mean
ENERGIES = len(RATIOS) + 1
LEANINGS = len(LEANS) + 1
POSITIONS_MOST = 49  # of a kernel that are told apart
GROWTH = 4  # a block has a quarter of the rows before it
BLOCKS_LEAST = 12  # blocks that the rows make at least
STEP_LEAST = 512  # symbols that a block has at least, where there are as many
SIZES = (ENERGIES * ENERGIES, ENERGIES * LEANINGS, ENERGIES * ENERGIES, POSITIONS_MOST * LEANINGS)
OFFSETS = tuple(sum(SIZES[:each]) for each in range(len(SIZES)))


@dataclass(frozen=True)
class ReadingStep:
    """The symbols that are read together: of the rows from ``first`` to ``last``, at some places of the grid."""

    first: int
    last: int
    color: int
    places: Array


def row_blocks(rows: int, row: int) -> Iterator[tuple[int, int]]:
    """(start, stop): blocks that grow with the number of rows before them. row: symbols in one."""
    least = -(-STEP_LEAST // row)
    most = max(least, -(-rows // BLOCKS_LEAST))
    start = 0
    while start < rows:
        stop = min(rows, start + min(most, max(least, 1 + start // GROWTH)))
        yield start, stop
        start = stop


def colors(height: int, width: int) -> list[Array]:
    """The places, y * width + x, of the white fields and of the black ones."""
    if height * width == 1:
        return [np.zeros(1, np.int64)]
    y, x = np.divmod(np.arange(height * width), width)
    return [np.flatnonzero((x + y) % 2 == color) for color in (0, 1)]


class Surroundings:
    """What was read of an array (rows, channels, height, width) of signed magnitudes, and contexts from it.

    mean: the mean magnitude in 16ths, at least 1. most: the largest magnitude.
    """

    def __init__(self, shape: Shape4, mean: int, most: int) -> None:
        self.shape = shape
        self.mean = mean
        _, channels, height, width = shape
        self._edges = np.array([mean * each >> 8 for each in RATIOS], np.int64)
        self._columns = np.zeros((channels, height * width), np.int64)
        self._above = np.zeros((channels, height * width), np.int64)
        self._block = np.zeros((0, channels, height + 2, width + 2), np.int32)
        self._white = np.zeros((0, channels), np.int64)
        around = np.zeros((height + 2, width + 2), np.int64)
        self._known = around
        self._colors = colors(height, width)
        self._energy_table, self._lean_table = _neighbour_tables(mean, self._edges, most)
        self._most = most

    def steps(self) -> Iterator[ReadingStep]:
        """All steps in order; contexts and ``put`` are for the current one."""
        rows, channels, height, width = self.shape
        for first, last in row_blocks(rows, channels * height * width):
            self._block = np.zeros((last - first, channels, height + 2, width + 2), np.int32)
            self._known = np.zeros((height + 2, width + 2), np.int64)
            self._white = np.zeros((last - first, channels), np.int64)
            self._column_energy, self._smooth_energy = self._of_columns(first)
            for color, places in enumerate(self._colors):
                yield ReadingStep(first, last, color, places)
            inner = self._block[:, :, 1:-1, 1:-1]
            self._columns += np.abs(inner).sum(axis=0).reshape(channels, -1)
            self._above = inner[-1].reshape(channels, -1).astype(np.int64)

    def contexts(self, step: ReadingStep) -> Array:
        """(4, n) the numbers of the contexts of a step's symbols, as ``mixing.MixingNode`` takes them for ``SIZES``."""
        _, channels, height, width = self.shape
        shape = (step.last - step.first, channels, step.places.size)
        if step.color == 0:
            energy, lean = self._above_energy(step), self._above_lean(step)
            kernel = np.full((1, channels, 1), ENERGIES // 2)
        else:
            energy, lean = self._of_neighbours(step)
            kernel = self._of_kernels()[:, :, None]
        smooth = self._smooth_energy[None, :, step.places]
        column = self._column_energy[None, :, step.places]
        place = step.places if height * width <= POSITIONS_MOST else np.zeros_like(step.places)
        made = (
            smooth * ENERGIES + energy,
            energy * LEANINGS + lean,
            kernel * ENERGIES + column,
            place[None, None] * LEANINGS + lean,
        )
        found = np.empty((len(SIZES), *shape), np.int64)
        for row, numbers, offset in zip(found, made, OFFSETS, strict=True):
            np.add(numbers, offset, out=row)
        return found.reshape(len(SIZES), -1)

    def put(self, step: ReadingStep, values: Array) -> None:
        """Take in the step's signed magnitudes, (n,) in the order of its contexts."""
        _, channels, _, width = self.shape
        y, x = np.divmod(step.places, width)
        taken = values.reshape(step.last - step.first, channels, step.places.size)
        self._block[:, :, y + 1, x + 1] = taken
        self._known[y + 1, x + 1] = 1
        self._white += np.abs(taken).sum(axis=2)

    def _of_columns(self, rows: int) -> tuple[Array, Array]:
        """(channels, places) the energies of columns, and of each with its neighbours', quantized."""
        _, channels, height, width = self.shape
        energy = (FINE * self._columns + 2 * self.mean) // (rows + 2)
        grid = np.pad(energy.reshape(channels, height, width), ((0, 0), (1, 1), (1, 1)), mode="edge")
        around = grid[:, :-2, 1:-1] + grid[:, 2:, 1:-1] + grid[:, 1:-1, :-2] + grid[:, 1:-1, 2:]
        smooth = (2 * grid[:, 1:-1, 1:-1] + around) // 6
        return self._quantized(energy), self._quantized(smooth.reshape(channels, -1))

    def _of_kernels(self) -> Array:
        """(rows of the block, channels) the energies of the white fields: of the kernel, or of the row without one."""
        _, channels, height, width = self.shape
        white = self._colors[0].size
        sums, count = self._white, white
        if height * width < 4:
            sums, count = self._white.sum(axis=1, keepdims=True), white * channels
        energy = self._quantized((2 * FINE * sums + 3 * self.mean) // (2 * count + 3))
        return np.broadcast_to(energy, self._white.shape)

    def _of_neighbours(self, step: ReadingStep) -> tuple[Array, Array]:
        """(rows, channels, places) energy and leaning of the neighbours that are known."""
        sums, sizes = _four(self._block), _four(np.abs(self._block))
        known = _four(self._known[None, None]).reshape(-1)[step.places]
        flat = (*self._block.shape[:2], -1)
        sums, sizes = sums.reshape(flat)[:, :, step.places], sizes.reshape(flat)[:, :, step.places]
        room = 4 * self._most + 1
        return self._energy_table[known * room + sizes], self._lean_table[known * (2 * room) + sums + room]

    def _above_energy(self, step: ReadingStep) -> Array:
        sizes = np.abs(self._above[:, step.places])
        return np.asarray(self._energy_table[(4 * self._most + 1) + sizes][None])

    def _above_lean(self, step: ReadingStep) -> Array:
        room = 4 * self._most + 1
        return np.asarray(self._lean_table[2 * room + self._above[:, step.places] + room][None])

    def _quantized(self, energy: Array) -> Array:
        return np.asarray(np.searchsorted(self._edges, energy, side="right"))


def _four(grid: Array) -> Array:
    """The sum of the four neighbours in an array with a border around its last two axes."""
    found: Array = grid[:, :, :-2, 1:-1] + grid[:, :, 2:, 1:-1] + grid[:, :, 1:-1, :-2] + grid[:, :, 1:-1, 2:]
    return found


def _neighbour_tables(mean: int, edges: Array, most: int) -> tuple[Array, Array]:
    """Quantized energies by (known, sum of sizes), and leanings by (known, sum + room)."""
    room = 4 * most + 1
    known = np.arange(5)[:, None]
    energies = (FINE * np.arange(room)[None] + mean) // (known + 1)
    table = np.searchsorted(edges, energies, side="right")
    leans = np.array([mean * each >> 8 for each in LEANS], np.int64)
    sums = FINE * np.arange(-room, room)
    leaning = np.stack([np.searchsorted(leans * max(1, each), sums, side="right") for each in range(5)])
    return table.reshape(-1), leaning.reshape(-1)
