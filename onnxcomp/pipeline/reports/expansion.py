"""Expand a model and have ONNX Runtime say the same of every tensor before anybody is told that nothing changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import VerificationError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.storage.expand import expand
from onnxcomp.graph.stored.decoding import Decoders
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import same_bits
from onnxcomp.runtime import evaluate


@dataclass(frozen=True)
class Expanded:
    """The expanded model, and how many tensors became plain: each has the bits that ONNX Runtime computes."""

    model: Model
    tensors: int


def expand_checked(model: Model) -> Expanded:
    """``graph.expand.expand``, each tensor compared with what ONNX Runtime computes from the decoder alone.

    Raises VerificationError where one differs, TargetError where ONNX Runtime does not load a decoder.
    """
    count = 0
    for decoder in Decoders(open_graph(model)).computed():
        (computed,) = evaluate(decoder.alone().SerializeToString()).values()
        if not same_bits(np.asarray(computed), decoder.values):
            raise VerificationError(
                f"{model.name}: {decoder.key}: ONNX Runtime computes other values than expand would store. "
                "Leave the model as it is."
            )
        count += 1
    return Expanded(expand(model), count)
