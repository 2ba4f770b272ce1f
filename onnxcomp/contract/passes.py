"""The base of all passes: what a subclass declares, and ``apply``."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxcomp.contract.context import Context
from onnxcomp.contract.outcome import Outcome
from onnxcomp.contract.parameters import Parameter, parameters
from onnxcomp.errors import ParameterError

if TYPE_CHECKING:
    from onnxcomp.graph.ir.reader import Graph
    from onnxcomp.model import Model


class Needs(enum.Enum):
    """What a pass cannot run without, checked for a whole recipe before any work starts."""

    NOTHING = "nothing"
    CALIBRATION = "calibration"


class Structure(enum.StrEnum):
    """What a pass makes of a model's weights or nodes, and a later pass may destroy."""

    ZEROS = "zeros"  # pruned values
    LEVELS = "levels"  # few different values, on a grid or from a codebook
    FACTORS = "factors"  # a matrix as a product of smaller ones
    INTEGERS = "integers"  # nodes that compute with integers, or read them
    COMPACT = "compact"  # weights behind decoders


class Exact(enum.Enum):
    """Where a model computes what it did before the pass."""

    NOWHERE = "nowhere"
    OUTPUTS = "outputs"  # of the model; tensors inside may have other scales or sizes under their old names
    TENSORS = "tensors"  # every tensor that keeps its name


@dataclass(frozen=True)
class Effect:
    """What a pass claims.

    shrinks: any of "bytes", "latency", "load", "memory"; a claim of latency is measured on the target.
    exact: where values stay the same, up to float rounding where ``rounding`` says so.
    """

    shrinks: tuple[Literal["bytes", "latency", "load", "memory"], ...]
    exact: Exact
    rounding: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the model's outputs stay the same."""
        return self.exact is not Exact.NOWHERE


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """Base of all passes; subclasses are frozen, keyword-only dataclasses in a file named after the pass.

    needs, effect, paper: see the classes above; ``paper`` is the address of the source, "" for plain housekeeping.
    makes: structures that later passes could destroy. destroys: those that it may destroy itself; a recipe in which it
        comes after a pass that makes one of them is refused.
    variants: the fields to set for each choice of "auto", mildest first, where the strengths alone do not say it.
    prepared_by: exact passes that `onnxcomp run` puts before it; recipes name them themselves.
    as_stored: it works on weights as they are stored, decoders included; others see what these decode to.
    stores_encodings: it stores what the weights' encodings say, so that what it leaves plain has no use for one.
    renews_reference: it moves what weights do to others, as those that read cut channels make up for them: passes that
        repair afterwards hold the model against what it left.
    trains: it moves inner tensors on purpose, towards the original's outputs: what they are to be from then on is what
        it left, though its own teacher stays the original (``context.original``).
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    effect: ClassVar[Effect]
    paper: ClassVar[str] = ""
    makes: ClassVar[frozenset[Structure]] = frozenset()
    destroys: ClassVar[frozenset[Structure]] = frozenset()
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    prepared_by: ClassVar[tuple[str, ...]] = ()
    as_stored: ClassVar[bool] = False
    stores_encodings: ClassVar[bool] = False
    renews_reference: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def needed(self) -> Needs:
        """What this very instance cannot run without: one of its algorithms may need more than the pass does."""
        return type(self).needs

    def draws_on_data(self, *, calibration: bool) -> bool:
        """Whether the result depends on the calibration data, where there are some (``calibration``)."""
        return calibration and self.needed() is Needs.CALIBRATION

    def shortens_ends(self) -> bool:
        """Whether float32 inputs and outputs of the model may get a shorter float type, since the user asked for it."""
        return False

    def renames(self) -> bool:
        """Whether tensors and nodes lose the names that they had, and all that differs is how they are called."""
        return False

    def __post_init__(self) -> None:
        for each in parameters(type(self)):
            value = getattr(self, each.name)
            if not each.accepts(value):
                raise ParameterError(
                    f"{self.pass_name()}: {each.name} must be {each.allowed}, got {value!r}. "
                    f"See `onnxcomp passes {self.pass_name()}`."
                )

    def refuse_two(self, *fields: str) -> None:
        """Raises ParameterError where more than one of these fields is given, which say the same in other ways."""
        given = [each for each in fields if getattr(self, each) is not None]
        if len(given) > 1:
            raise ParameterError(
                f"{self.pass_name()}: {given[1]} must be left out where {given[0]} is given, "
                f"got {getattr(self, given[1])}. Give one of them."
            )

    @classmethod
    def pass_name(cls) -> str:
        """The name in recipes, on the command line and in the docs: verb-object."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring: one imperative sentence."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def strength(cls) -> Parameter | None:
        """The field that says how hard the pass compresses, or None."""
        return next((each for each in parameters(cls) if each.strengths), None)

    @classmethod
    def choices(cls) -> tuple[Mapping[str, Any], ...]:
        """What "auto" chooses from for each weight: fields to set, mildest first; empty where there is no strength."""
        strength = cls.strength()
        if cls.variants or strength is None:
            return cls.variants
        return tuple({strength.name: value} for value in strength.strengths or ())

    def ways(self) -> Sequence[Pass]:
        """The pass as it may act, the usual way first: a search that has it follow on its choices goes on with another
        where that is better for sure on samples held out."""
        return (self,)

    def faults(self, before: Model, after: Model) -> Sequence[str]:
        """Names of what the pass got wrong, found by comparing the models: it is applied once more without them."""
        return ()

    @abstractmethod
    def apply(self, graph: Graph, context: Context) -> Outcome:
        """Edit the graph and say what was changed and what was left alone, and why."""
