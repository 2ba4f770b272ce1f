"""Models that take turns on the target, and which of them is fastest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import ModelError, TargetError, VerificationError
from onnxcomp.model import Model
from onnxcomp.pipeline.costs import on_disk, session_options
from onnxcomp.runtime import measure_latency, profile_nodes
from onnxcomp.target import Target

FEWEST_RUNS = 7
HEAT_S = 0.3  # for each model of a first race
FINAL_S = 1.0  # for each model of the race that decides
TOGETHER_BYTES = 10**9  # models of more than this in all are not open at the same time
BASE = ""  # the key of what the others are compared with


@dataclass(frozen=True)
class Course:
    """What models are run on: one sample of the data, on the target."""

    data: CalibrationData
    target: Target

    def fault(self, model: Model) -> str | None:
        """Why the model cannot take part, None where it loads and runs."""
        try:
            with model.opened_on(self.target.session) as session:
                session.run(self.data.timed_sample())
        except (TargetError, VerificationError, ModelError) as error:
            return str(error)
        return None

    def race(self, base: Model, rivals: Mapping[str, Model], *, seconds: float = HEAT_S) -> dict[str, float]:
        """Median latency of each rival over that of ``base``, in alternated runs of ``seconds`` for each model.

        Warm ones: among many models the caches would otherwise favour the small ones, which no user sees.
        """
        found: dict[str, float] = {}
        for group in _groups(base, rivals):
            took = self.milliseconds({BASE: base, **group}, seconds=seconds)
            found |= {name: took[name] / took[BASE] for name in group}
        return found

    def milliseconds(self, models: Mapping[str, Model], *, seconds: float = HEAT_S) -> dict[str, float]:
        """Median latency of each model, in alternated runs of ``seconds`` for each."""
        with on_disk(models) as paths:
            took = measure_latency(
                paths,
                self.data.timed_sample(),
                runs=FEWEST_RUNS,
                seconds=seconds * len(paths),
                warm=True,
                **session_options(self.target),
            )
        return {name: each.median_ms for name, each in took.items()}

    def profile(self, model: Model) -> dict[str, float]:
        """Seconds of one run by node of the optimized model."""
        with on_disk({BASE: model}) as paths:
            return profile_nodes(paths[BASE], self.data.timed_sample(), **session_options(self.target))


def _groups(base: Model, rivals: Mapping[str, Model]) -> Iterator[dict[str, Model]]:
    """The rivals in groups that may be open together."""
    group: dict[str, Model] = {}
    size = base.size_bytes
    for name, model in rivals.items():
        if group and size + model.size_bytes > TOGETHER_BYTES:
            yield group
            group, size = {}, base.size_bytes
        group[name] = model
        size += model.size_bytes
    if group:
        yield group
