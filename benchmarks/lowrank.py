"""Low rank on scored models: what is left of them at a share of their weights, on calibration data alone.

    python -m benchmarks.lowrank DATA [--cases NAME,...]

It wants the packages of the extra "bench": pip install -e '.[bench]'. DATA is as in ``benchmarks.scored``. Printed for
each case: the share of the weights in question that is left, the metric beside that of plain singular value
decomposition at the same shares and beside the original's, latency as a ratio of the original's (medians of
alternating runs in one process, one thread), and the seconds that the optimization takes. Last, what errors on inputs
that were not seen are beside those of plain decomposition at equal rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.processes import calibration_inputs
from onnxcomp import Budget, Recipe, optimize
from onnxcomp.contract import Context
from onnxcomp.graph.factors.places import place_of_weight
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.structure.lowrank import PlainSpectrum, Spectrum, truncated_svd
from onnxcomp.pipeline.api import open_data
from onnxcomp.runtime import measure_latency
from onnxcomp.target import Target

NO_BUDGET = Budget(max_drop=1e9)
LATENCY_RUNS = 30
LATENCY_S = 4.0


@dataclass(frozen=True)
class Case:
    """A model, the recipe, the weights that are left alone, and what is to be reached (metric, latency ratio)."""

    model: str
    steps: str
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("linear", "conv", "embedding")
    least: float | None = None
    most: float | None = None
    latency: float | None = None


CASES = {
    "lenet300 first Gemm to 1/8": Case(
        "lenet300_mnist",
        """
        [[step]]
        pass = "factorize-linear"
        weights = 0.125
        [[step]]
        pass = "match-outputs"
        """,
        exclude=("3.weight", "5.weight"),
        most=1.65,
    ),
    "lenet5 all weights to 1/4": Case(
        "lenet5_caffe_mnist",
        """
        [[step]]
        pass = "factorize-conv"
        ratio = 0.5
        [[step]]
        pass = "factorize-linear"
        weights = 0.24
        """,
        most=0.98,
        latency=0.75,
    ),
    "minilm products to 80%": Case(
        "minilm_l6_stsb",
        """
        [[step]]
        pass = "factorize-linear"
        weights = 0.8
        """,
        exclude=("*embeddings*",),
        least=85.7,
        latency=1.0,
    ),
    "minilm table to 1/2": Case(
        "minilm_l6_stsb",
        """
        [[step]]
        pass = "factorize-linear"
        weights = 0.5
        """,
        exclude=("onnx::MatMul*", "*position*", "*token_type*"),
        least=86.0,
    ),
    "efficientnet 1x1 to 85%": Case(
        "efficientnet_lite0_imagenet",
        """
        [[step]]
        pass = "factorize-linear"
        weights = 0.85
        """,
        exclude=("_fc.weight",),
        least=80.0,
    ),
}
