"""One weight or more of every encoding, with its codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.numerics.encodings.encoding import (
    CodebookEncoding,
    Encoding,
    GridEncoding,
    MaskEncoding,
    RescaledEncoding,
    VectorEncoding,
    float_dtype,
)  # fmt: skip
from onnxcomp.numerics.encodings.expression import Array

SHAPE = (6, 8, 3)
NAMES = (
    "grid", "grid of the whole", "grid without a scale", "grid by blocks", "grid by negative scales",
    "grid with a trained zero", "grid of the whole with a trained zero", "codebook",
    "codebook without a scale", "codebook by blocks", "vectors along the first axis", "vectors along the last axis",
    "rescaled", "rescaled by blocks", "mask",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """The encoding, the codes, and the names of what may be trained."""

    encoding: Encoding
    codes: Array
    free: tuple[str, ...]


def sample(name: str, dtype: str = "float64") -> Sample:
    """The sample of that name with values of that type."""
    rng = np.random.default_rng(NAMES.index(name))
    own, compute = float_dtype(dtype), np.dtype(np.float64 if dtype == "float64" else np.float32)
    codes = rng.integers(0, 7, SHAPE).astype(np.uint8)
    by_block = "blocks" in name
    where: dict[str, Any] = {"axis": 1, "block_size": 2} if by_block else {"axis": 1}
    form = (6, 4, 1, 3) if by_block else (1, 8, 1)
    scale = rng.uniform(0.2, 0.6, form).astype(compute)
    points = rng.integers(0, 7, form).astype(np.uint8)
    grid = GridEncoding(dtype=dtype, levels=7, scale=scale, zero_point=points, **where)
    book = np.sort(rng.normal(size=7)).astype(compute)
    match name:
        case "grid" | "grid by blocks":
            return Sample(grid, codes, ("scale",))
        case "grid of the whole":
            whole = GridEncoding(dtype=dtype, levels=7, scale=scale[0, :1, 0].reshape(()), zero_point=np.asarray(3))
            return Sample(whole, codes, ("scale",))
        case "grid without a scale":
            return Sample(GridEncoding(dtype=dtype, levels=7, zero_point=np.asarray(3)), codes, ())
        case "grid by negative scales":
            return Sample(replace(grid, scale=-scale), codes, ("scale",))
        case "grid with a trained zero":
            return Sample(replace(grid, zero_point=(points + 0.3).astype(compute)), codes, ("scale", "zero_point"))
        case "grid of the whole with a trained zero":
            zero = np.asarray(3.3, compute)
            whole = GridEncoding(dtype=dtype, levels=7, scale=scale[0, :1, 0].reshape(()), zero_point=zero)
            return Sample(whole, codes, ("scale", "zero_point"))
        case "codebook" | "codebook by blocks":
            scaled = CodebookEncoding(dtype=dtype, codebook=book, scale=scale, **where)
            return Sample(scaled, codes, ("codebook", "scale"))
        case "codebook without a scale":
            return Sample(CodebookEncoding(dtype=dtype, codebook=book.astype(own)), codes, ("codebook",))
        case "vectors along the first axis":
            vectors = VectorEncoding(dtype=dtype, codebook=rng.normal(size=(7, 2)).astype(own), axis=0)
            return Sample(vectors, codes.reshape(8, 3, 6)[..., :3], ("codebook",))
        case "vectors along the last axis":
            vectors = VectorEncoding(dtype=dtype, codebook=rng.normal(size=(7, 3)).astype(own), axis=2)
            return Sample(vectors, codes[..., :1], ("codebook",))
        case "rescaled" | "rescaled by blocks":
            inner = GridEncoding(dtype=compute.name, levels=7, scale=scale, zero_point=points, **where)
            factor = rng.uniform(0.5, 2, (6, 1, 1)).astype(compute)
            return Sample(RescaledEncoding(dtype=dtype, inner=inner, factor=factor), codes, ("factor", "scale"))
    values = np.where(codes < 4, 0, rng.normal(size=SHAPE)).astype(own)
    values[0, 0, 0] = -0.0
    return Sample(MaskEncoding(dtype=dtype), values, ("values",))
