"""What differentiates: a model with a scalar loss among its outputs, with respect to some of its weights.

    engine = Engine(model, "loss", ["conv.weight", "conv.bias"])
    loss, gradients = engine.loss_and_gradients(feeds, values)

The loss is nodes of the model, its targets are inputs like any other. What the weights are made of (masks, codebooks,
scales) is not seen here: a weight's values come with every call, and the gradient is with respect to these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from onnxcomp.errors import PassError
from onnxcomp.model import Model

Array = NDArray[Any]


class NoGradientError(PassError):
    """An operator between a trained weight and the loss has no derivative in this engine."""


class Engine(ABC):
    """A model's loss and its derivatives; it keeps nothing from one call to the next.

    name: by which it is chosen. runs_in_threads: whether several threads may call it at once, and get more done than
    one call that has as many.
    """

    name: ClassVar[str]
    runs_in_threads: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def unsupported(cls, model: Model, loss: str, parameters: Sequence[str]) -> Mapping[str, str]:
        """Why it cannot differentiate this model: reason by operator (``domain::Op`` outside the default domain).

        Only operators between one of the parameters and the loss count, and those that it cannot even compute.
        Empty where ``__init__`` and both methods will work. Nothing is run for it.
        """

    @abstractmethod
    def __init__(self, model: Model, loss: str, parameters: Sequence[str], *, threads: int = 0) -> None:
        """Raises NoGradientError, naming the operators, where ``unsupported`` would not be empty.

        loss: an output of the model that is a float scalar. parameters: names of float initializers of the main graph
        or of constants lifted to there. threads: as many as there are cores for 0.
        """

    @abstractmethod
    def forward(self, feeds: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs by name, with these values of the parameters (all of them)."""

    @abstractmethod
    def loss_and_gradients(
        self, feeds: Mapping[str, Array], values: Mapping[str, Array]
    ) -> tuple[float, dict[str, Array]]:
        """The loss, and d loss / d parameter by name, each of its parameter's shape and type.

        A parameter that the loss does not depend on has zeros.
        """

    def step_bytes(self, feeds: Mapping[str, Array]) -> int | None:
        """Memory that one step takes with inputs of these shapes, before any is run; None where it cannot tell.

        What the optimizer keeps of the parameters is not in it.
        """
        return None
