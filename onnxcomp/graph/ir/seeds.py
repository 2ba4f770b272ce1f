"""Working copies of a model whose random nodes have seeds: every fresh session draws the same numbers.

original -> seeded: run, observed, rewritten -> unseeded: written
"""

from __future__ import annotations

from onnx import ModelProto

from onnxcomp.model import Model
from onnxcomp.noise import add_seeds, random_nodes, take_seeds


def is_drawing(model: Model) -> bool:
    """Whether the model has nodes that draw random numbers."""
    return next(random_nodes(model.proto), None) is not None


def seeded(model: Model, *, alike: Model | None = None) -> Model:
    """A copy in which every random node has a seed; the model itself where none lacks one.

    alike: a seeded model, another form of this one, whose nodes' seeds the same nodes get.
    """
    if not is_drawing(model):
        return model
    proto = _copied(model)
    seeds = add_seeds(proto, alike.seeds if alike else ())
    if not seeds:
        return model
    made = model.with_proto(proto)
    made.seeds, made.as_read = seeds, model.as_read
    return made


def unseeded(model: Model) -> Model:
    """The model without the seeds that ``seeded`` gave it or what it was made from."""
    if not model.seeds:
        return model
    proto = _copied(model)
    take_seeds(proto, model.seeds)
    made = model.with_proto(proto)
    made.seeds, made.as_read = (), model.as_read
    return made


def _copied(model: Model) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    return proto
