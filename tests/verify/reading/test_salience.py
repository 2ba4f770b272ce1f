"""onnxcomp.verify.reading.salience: which outputs tell where something is."""

from __future__ import annotations

import numpy as np

from onnxcomp.numerics.metrics import Seen, describe
from onnxcomp.verify.reading.salience import find_salience

RNG = np.random.default_rng(8)


def test_an_axis_whose_size_varies_holds_no_channels() -> None:
    """Of (samples, positions, channels) the positions differ from batch to batch, or the channels do."""
    rare = [np.where(RNG.random((8, count, 5)) < 0.1, 0.9, 0.01) for count in (20, 24)]
    for batches, axes in ((rare, {1}), ([each.transpose(0, 2, 1) for each in rare], {0})):
        blocks = [Seen(each.astype(np.float32)) for each in batches]
        described = describe(lambda seen=blocks: seen, channel_axes=(0, 1), asked="values")  # type: ignore[misc]
        found = find_salience({"y": described}, lambda _, seen=blocks: lambda: seen, lambda _: (0, 1))  # type: ignore[misc]
        assert {each.axis for each in found.values()} == axes
