"""A pass on trial: the models that its checks run on, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar, cast

import onnx

from onnxcomp.contract import Context, Outcome, Pass, SitePass
from onnxcomp.contract.context import AskedInEditError
from onnxcomp.errors import CalibrationError, OnnxcompError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.model import Model, load
from onnxcomp.testing.applying import Applied, context_for, eager, edited
from onnxcomp.testing.comparing import Feeds, run
from onnxcomp.testing.models import draw_models, feeds_for
from onnxcomp.testing.rules import Rule

T = TypeVar("T")

DRAWN = 132  # twice the number of blocks: each block stands first in two models
SEED = 2024

SURVIVES = Rule(
    "survives",
    "a pass never fails on a graph that it cannot help",
    "leave alone what it cannot rewrite, with outcome.skip(name, reason), before anything is edited",
)
NEEDS = Rule(
    "needs",
    "needed() says whether the pass asks for calibration data or for the original",
    "set needs = Needs.CALIBRATION, or override needed() where that depends on the fields",
)
BY_ITSELF = Rule(
    "by itself",
    "edit goes by the weight and the nodes that read it, what prepare gave, and of the context by seed and max_opset",
    "look up in prepare what edit has to know of data, the model and other weights, and give it by the weight's name",
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A model, inputs for it, what it gives, and what messages call it."""

    name: str
    proto: onnx.ModelProto
    feeds: Feeds
    outputs: Feeds

    @classmethod
    def of(cls, proto: onnx.ModelProto, *, name: str = "a model", feeds: Feeds | None = None, seed: int = 0) -> Sample:
        """A sample of a model that ONNX Runtime runs, with random inputs where there are no feeds."""
        given = feeds_for(proto, seed) if feeds is None else feeds
        return cls(name, proto, given, run(proto, given))


@cache
def drawn(count: int = DRAWN) -> tuple[Sample, ...]:
    """Drawn models, the same every time; without those few that an older ONNX Runtime cannot run."""
    found = []
    for index, proto in enumerate(draw_models(count, seed=SEED)):
        try:
            found.append(Sample.of(proto, name=f"the drawn model {index}", seed=index))
        except OnnxcompError:
            continue
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Trial:
    """A pass and the samples that it is tried on.

    own: samples of the pass's author, each of which meets every check. models: how many are drawn beside them.
    thorough: all of these meet every check, too, where else every so-manieth does.
    """

    kind: type[Pass]
    own: Sequence[Sample] = ()
    models: int = DRAWN
    thorough: bool = False

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All of them."""
        return (*self.own, *drawn(self.models))

    @property
    def names_at_once(self) -> int:
        """How many of a model's sites are excluded or included by name, one after another."""
        return 2 if self.thorough else 1

    @property
    def eagerest(self) -> Pass:
        """The pass, as eager as it gets."""
        return self.kind(**eager(self.kind))

    def some(self, every: int) -> list[Sample]:
        """The author's samples and each so-manieth of the drawn ones: that meets every block in time."""
        return [*self.own, *drawn(self.models)[:: 1 if self.thorough else every]]

    def applications(self, every: int = 1) -> Iterator[tuple[Sample, Applied]]:
        """What the eager pass makes of some of the samples; kept until another pass is on trial."""
        done = _eagerly_applied(self.kind, self.samples)
        return ((each, done[each]) for each in self.some(every))

    def apply(self, sample: Sample, rewrite: Pass, *, context: type[Context] = Context, **options: Any) -> Applied:
        """Apply the pass to a sample, in a context of that kind. AssertionError where it fails."""
        return self.edit(sample, rewrite, rewrite.apply, context, **options)

    def edit(
        self,
        sample: Sample,
        rewrite: Pass,
        edit: Callable[[Graph, Context], Outcome],
        context: type[Context] = Context,
        **options: Any,
    ) -> Applied:
        """What an edit of the sample's graph makes of it. AssertionError where it fails."""
        model = load(sample.proto)
        given = context_for(model, rewrite, sample.feeds, kind=context, **options)
        return attempt(rewrite, sample.name, lambda: edited(model, rewrite, lambda graph: edit(graph, given)))

    def sitings(self, every: int) -> Iterator[tuple[Sample, SitePass, Model, Context]]:
        """For a pass that acts at sites: samples with the eager pass, the model and the context."""
        rewrite = cast(SitePass, self.eagerest)
        for sample in self.some(every):
            model = load(sample.proto)
            yield sample, rewrite, model, context_for(model, rewrite, sample.feeds)


def attempt(rewrite: Pass, where: str, act: Callable[[], T]) -> T:
    """What the act gives; an error of the pass is an AssertionError that says so."""
    try:
        return act()
    except AskedInEditError as error:
        raise BY_ITSELF.broken(type(rewrite), f"{rewrite} on {where}: {error}") from error
    except CalibrationError as error:
        raise NEEDS.broken(type(rewrite), f"{rewrite} on {where}: {error}") from error
    except Exception as error:
        raise SURVIVES.broken(type(rewrite), f"{rewrite} on {where}: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=1)
def _eagerly_applied(kind: type[Pass], samples: tuple[Sample, ...]) -> dict[Sample, Applied]:
    trial = Trial(kind)
    return {each: trial.apply(each, trial.eagerest) for each in samples}
