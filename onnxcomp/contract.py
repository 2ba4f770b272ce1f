"""What a pass is: a frozen dataclass whose fields are its parameters, and one method, ``apply``.

    @dataclass(frozen=True, kw_only=True)
    class PruneWeights(Pass):
        \"\"\"Set the weights of smallest magnitude to zero.\"\"\"

        effect = Effect(shrinks=("bytes",), exact=False)
        paper = "https://arxiv.org/abs/1506.02626"
        makes = frozenset({"zeros"})

        sparsity: float = parameter(0.5, low=0.0, high=0.99, help="share of the weights set to zero")

        def apply(self, graph: Graph, context: Context) -> Outcome: ...

The first line of the docstring is the command line's help; the fields become options, recipe keys and
the tests of invalid values. The pipeline owns copying, cleaning up, checking, verifying and taking back:
``apply`` edits the graph that it is given and says what it changed and what it left alone, and why.
"""

from __future__ import annotations

import enum
import fnmatch
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from onnxcomp.errors import ParameterError

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.calibration import CalibrationData
    from onnxcomp.calibration.statistics.moments import Moments
    from onnxcomp.graph.ir.reader import Graph
    from onnxcomp.graph.weights.roles import Weight
    from onnxcomp.model import Model
    from onnxcomp.target import Target

__all__ = [
    "Change", "Context", "Effect", "Needs", "Outcome", "Parameter", "Pass", "Skip", "parameter", "parameters",
]  # fmt: skip

T = TypeVar("T")


class Needs(enum.Enum):
    """What a pass cannot run without, checked for a whole recipe before any work starts."""

    NOTHING = "nothing"
    CALIBRATION = "calibration"
    GRADIENTS = "gradients"


@dataclass(frozen=True)
class Effect:
    """What a pass claims.

    shrinks: any of "bytes", "latency", "load", "memory"; a claim of latency is measured on the target.
    exact: the outputs stay the same, up to float rounding where ``rounding`` says so.
    """

    shrinks: tuple[Literal["bytes", "latency", "load", "memory"], ...]
    exact: bool
    rounding: bool = False


@dataclass(frozen=True)
class Parameter:
    """One field of a pass as data: what the options, the recipe's schema, the docs and the tests are made from."""

    name: str
    type: type
    default: Any
    help: str
    optional: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    strengths: tuple[Any, ...] | None = None

    @property
    def allowed(self) -> str:
        """The allowed values in words, as an error message and the docs print them."""
        words = self._allowed_words()
        return f"{words}, or left out" if self.optional else words

    def _allowed_words(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        if self.type is bool:
            return "true or false"
        noun = {int: "a whole number", float: "a number", str: "a text"}[self.type]
        if self.low is None and self.high is None:
            return noun
        if self.high is None:
            return f"{noun} of at least {self.low}"
        return f"{noun} from {self.low} to {self.high}"

    def accepts(self, value: Any) -> bool:
        """Whether the value is of the field's type and within its range."""
        if value is None:
            return self.optional
        if self.choices is not None:
            return isinstance(value, str) and value in self.choices
        if self.type is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        else:
            fits = type(value) is self.type
        return fits and (self.type in (bool, str) or self._in_range(value))

    def _in_range(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def parameter(
    default: T,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    strengths: Sequence[Any] | None = None,
) -> T:
    """Declare a field of a pass once: default, range and help.

    strengths: for the one field that says how hard the pass compresses: the values to choose from when a
        recipe asks for "auto", mildest first. Each weight then gets the strongest that the budget bears.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "choices": tuple(choices) if choices else None,
        "strengths": tuple(strengths) if strengths else None,
    }
    value: T = field(default=default, metadata=metadata)
    return value


@dataclass(frozen=True)
class Change:
    """A weight or node that was changed, under the name by which it can be excluded the next time."""

    name: str
    what: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """A weight or node that was left alone, and why."""

    name: str
    reason: str


@dataclass
class Outcome:
    """What a pass did. Nothing in ``changed`` means that the graph is as it was."""

    changed: list[Change] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    def change(self, name: str, what: str, **details: Any) -> None:
        """Note a weight or node that was changed."""
        self.changed.append(Change(name, what, details))

    def skip(self, name: str, reason: str) -> None:
        """Note a weight or node that was left alone."""
        self.skipped.append(Skip(name, reason))


def matches(name: str, pattern: str) -> bool:
    """Whether a name is the pattern, as names with brackets are their own, or is of its kind (shell style)."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _no_progress(done: int, total: int, what: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Context:
    """What a pass may ask for beside the graph.

    seed: the only source of randomness (``rng``).
    exclude: patterns (shell style) of weight and node names to leave alone.
    include: where given, only these exact names may be touched; taking back and searching use it.
    calibration: input batches where there is data; never the verification part.
    original: the model as it was before the first step that loses anything, for passes that repair what was lost;
        None without a pipeline.
    divergence: how far a model is from the original on the calibration part, as verification measures it
        (infinite for one that fails); None without data.
    scratch: a folder that is deleted at the end of the run.
    progress: called with (done, total, what).
    max_opset: the highest default-domain opset that may be used, from ``--min-ort`` and the target.
    """

    seed: int = 0
    target: Target | None = None
    calibration: CalibrationData | None = None
    original: Model | None = None
    divergence: Callable[[Model], float] | None = None
    exclude: tuple[str, ...] = ()
    include: frozenset[str] | None = None
    progress: Callable[[int, int, str], None] = _no_progress
    max_opset: int | None = None

    def selects(self, *names: str) -> bool:
        """Whether a weight or node known under these names may be touched."""
        if self.include is not None and not self.include.intersection(names):
            return False
        return not self.excludes(*names)

    def excludes(self, *names: str) -> bool:
        """Whether one of these names is excluded, whatever is included."""
        return any(matches(name, pattern) for name in names for pattern in self.exclude)

    def editable_weights(
        self, graph: Graph, outcome: Outcome, obstacle: Callable[[Weight], str | None] | None = None
    ) -> Iterator[Weight]:
        """The weights whose values a pass may change; the others are skipped in its outcome, with the reason.

        obstacle: why the pass itself leaves a weight alone, or None.
        """
        from onnxcomp.graph.weights.value_pass import editable_weights

        return editable_weights(
            graph, selects=self.selects, skip=outcome.skip, progress=self.progress, obstacle=obstacle
        )

    def input_moments(self, graph: Graph, weights: Sequence[Weight]) -> Mapping[str, Moments]:
        """The second moments of what each weight is multiplied with, by name; nothing without calibration data, nor for
        weights that they would be far larger than."""
        from onnxcomp.calibration.statistics.moments import input_moments
        from onnxcomp.graph.weights.matrix_form import worth_moments
        from onnxcomp.runtime import Session

        if self.calibration is None:
            return {}
        opened = Session if self.target is None else self.target.session
        worth = [each for each in weights if worth_moments(each)]
        return input_moments(graph, worth, self.calibration, open_session=opened, progress=self.progress)

    def rng(self, *key: str) -> np.random.Generator:
        """A generator that depends on the seed and the key only, not on what ran before."""
        import zlib

        import numpy

        return numpy.random.default_rng([self.seed, *(zlib.crc32(part.encode()) for part in key)])


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """Base of all passes; subclasses are frozen, keyword-only dataclasses in a file named after the pass.

    needs, effect, paper: see the classes above; ``paper`` is the address of the source, "" for plain housekeeping.
    makes: what later passes could destroy ("zeros", "levels", "factors", "qdq", "compact", ...).
    variants: the fields to set for each choice of "auto", mildest first, where the strengths alone do not say it.
    preserves: which of these it keeps when it comes after. A recipe whose order would destroy is refused.
    prepared_by: exact passes that `onnxcomp run` puts before it; recipes name them themselves.
    as_stored: whether it works on weights as they are stored, decoders included; others see what these decode to.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    effect: ClassVar[Effect]
    paper: ClassVar[str] = ""
    makes: ClassVar[frozenset[str]] = frozenset()
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    preserves: ClassVar[frozenset[str]] = frozenset({"zeros", "levels", "factors", "qdq", "compact"})
    prepared_by: ClassVar[tuple[str, ...]] = ()
    as_stored: ClassVar[bool] = False

    def needed(self) -> Needs:
        """What this very instance cannot run without: one of its algorithms may need more than the pass does."""
        return type(self).needs

    def draws_on_data(self, *, calibration: bool) -> bool:
        """Whether the result depends on the calibration data, where there are some (``calibration``)."""
        return calibration and self.needed() is Needs.CALIBRATION

    def shortens_ends(self) -> bool:
        """Whether float32 inputs and outputs of the model may get a shorter float type, since the user asked for it."""
        return False

    def __post_init__(self) -> None:
        for each in parameters(type(self)):
            value = getattr(self, each.name)
            if not each.accepts(value):
                raise ParameterError(
                    f"{self.pass_name()}: {each.name} must be {each.allowed}, got {value!r}. "
                    f"See `onnxcomp passes {self.pass_name()}`."
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

    @abstractmethod
    def apply(self, graph: Graph, context: Context) -> Outcome:
        """Edit the graph and say what was changed and what was left alone, and why."""


def parameters(of: type[Pass]) -> tuple[Parameter, ...]:
    """The fields of a pass as data, in the order of their declaration."""
    hints = typing.get_type_hints(of)
    found = []
    for each in fields(of):
        kind, optional = _plain_type(hints[each.name])
        default = each.default if each.default is not MISSING else None
        found.append(Parameter(name=each.name, type=kind, default=default, optional=optional, **each.metadata))
    return tuple(found)


def _plain_type(hint: Any) -> tuple[type, bool]:
    """``int | None`` -> (int, True); ``Literal["a", "b"]`` -> (str, False)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [each for each in typing.get_args(hint) if each is not type(None)]
        return _plain_type(inner[0])[0], True
    if typing.get_origin(hint) is Literal:
        return str, False
    return typing.cast(type, hint), False
