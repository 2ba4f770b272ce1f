"""Arguments as people write them in Python, as the pipeline wants them; what cannot be meant is one clear line.

    max_drop="1%", 0.01, Drop(...)           ->  Drop
    target_size="4x", 120_000                ->  Goal
    ep="cpu", threads=2, min_ort="1.17"      ->  Target
    "prune-weights", PruneWeights(...)       ->  Pass
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from onnxcomp.budget import Budget, Drop, Goal, parse_drop, parse_latency, parse_size, parse_time
from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.contract import Pass, parameters
from onnxcomp.errors import ParameterError
from onnxcomp.model import Model
from onnxcomp.pipeline.result import Result
from onnxcomp.recipe import AUTO, Recipe, single
from onnxcomp.registry import get_pass
from onnxcomp.target import Target

T = TypeVar("T")

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model | Result
Words = str | float | None
PathLike = str | os.PathLike[str]


def a_model(value: object, argument: str = "model") -> Any:
    """The argument, which must be what ``onnxcomp.load`` takes, or a Result with its model. Raises ParameterError."""
    if isinstance(value, Result):
        return value.model
    if isinstance(value, (str, os.PathLike, bytes, onnx.ModelProto, Model)):
        return value
    raise ParameterError(_wrong(argument, "a path, bytes, an onnx.ModelProto or an onnxcomp.Model", value))


def a_drop(value: Words | Drop) -> Drop | None:
    """``0.01`` -> in the metric's unit; ``"1%"``, ``"30dB"``, ``"none"``."""
    return _meant("max_drop", value, Drop, parse_drop, 'such as 0.01, "1%" or "30dB"')


def a_budget(
    budget: Budget | None, *, max_drop: Words | Drop, target_size: Any, target_latency: Any, time_budget: Words
) -> Budget:
    """The limits of a run, from words or as a Budget. Raises ParameterError where both are given."""
    words = {"max_drop": max_drop, "target_size": target_size, "target_latency": target_latency}
    words["time_budget"] = time_budget
    if budget is not None:
        if not isinstance(budget, Budget):
            raise ParameterError(_wrong("budget", "an onnxcomp.Budget; in words: max_drop=, target_size=, ...", budget))
        given = [name for name, value in words.items() if value is not None]
        if given:
            raise ParameterError(f"budget: give it, or {given[0]}, not both")
        return budget
    return Budget(
        max_drop=a_drop(max_drop),
        target_size=_meant("target_size", target_size, Goal, parse_size, 'such as "4x", "25%", "5MB" or bytes'),
        target_latency=_meant("target_latency", target_latency, Goal, parse_latency, 'such as "0.5x" or "5ms"'),
        time_budget_s=_seconds("time_budget", time_budget),
    )


def _seconds(argument: str, value: Any) -> float | None:
    if value is None or isinstance(value, str):
        return None if value is None else parse_time(value)
    if isinstance(value, Real) and value is not True and 0 < float(value) < math.inf:
        return float(value)
    raise ParameterError(_wrong(argument, 'such as "90s", "10m", or seconds', value))


def in_words(argument: str, value: Words) -> str | None:
    """A time in words, of seconds too."""
    if value is None:
        return None
    _seconds(argument, value)
    return value if isinstance(value, str) else f"{value}s"


def a_target(
    ep: str | Target,
    *,
    threads: int | None = None,
    target_cpu: str | None = None,
    min_ort: str | tuple[int, int] | None = None,
    custom_ops: PathLike | Iterable[PathLike] = (),
) -> Target:
    """Where models run: a Target, or an execution provider's name and what else there is to say of it."""
    libraries = (custom_ops,) if isinstance(custom_ops, (str, os.PathLike)) else tuple(custom_ops)
    said = {"threads": threads, "target_cpu": target_cpu, "min_ort": min_ort, "custom_ops": libraries or None}
    if isinstance(ep, Target):
        given = [name for name, value in said.items() if value is not None]
        if given:
            raise ParameterError(f"{given[0]}: the Target says it; give the name of an execution provider beside it")
        return ep
    if not isinstance(ep, str):
        raise ParameterError(_wrong("ep", 'a name such as "cpu", or an onnxcomp.Target', ep))
    count = 1 if threads is None else a_whole_number("threads", threads, least=1)
    oldest = _version(min_ort)
    paths = tuple(Path(each) for each in libraries)
    return Target.of(ep, threads=count, cpu=target_cpu, min_ort=oldest, custom_ops=paths)


def _version(value: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """``"1.17"`` -> (1, 17)."""
    if value is None or (isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, int) for each in value)):
        return value
    parts = value.split(".") if isinstance(value, str) else []
    if len(parts) not in (2, 3) or not all(each.isdigit() for each in parts):
        raise ParameterError(_wrong("min_ort", 'a version such as "1.17"', value))
    return int(parts[0]), int(parts[1])


def a_recipe(value: object) -> Any:
    """The argument, which must be a preset, a file, a Recipe, or a Pass, which is a recipe of its own."""
    if isinstance(value, Pass):
        return single(value)
    if isinstance(value, (str, os.PathLike, Recipe)):
        return value
    raise ParameterError(_wrong("recipe", "a preset's name, a TOML file, an onnxcomp.Recipe or a pass", value))


def a_single_pass(rewrite: object, given: Mapping[str, Any] | None) -> Recipe:
    """The recipe that ``onnxcomp run`` makes of a pass and its fields; "auto" for a field that has strengths."""
    if isinstance(rewrite, Pass):
        if given:
            raise ParameterError("parameters: the pass has its own; name it instead of giving it")
        return single(rewrite)
    if not isinstance(rewrite, str):
        raise ParameterError(_wrong("rewrite", 'a pass or its name, such as "prune-weights"', rewrite))
    kind = get_pass(rewrite.replace("_", "-"))
    fields = dict(given or {})
    strength = kind.strength()
    known = {each.name for each in parameters(kind)}
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ParameterError(f"{kind.pass_name()}: {unknown[0]} is none of its parameters: {', '.join(sorted(known))}")
    auto = [name for name, value in fields.items() if value == AUTO and strength and name == strength.name]
    chosen = {name: value for name, value in fields.items() if name not in auto}
    return single(kind(**chosen), auto=bool(auto))


def calibration_of(source: Any, sequence_axis: int | None) -> Any:
    """Calibration data, as sequences where an axis of steps is named."""
    if isinstance(source, (bytes, bool, int, float)):
        forms = "a path, module:function, arrays by input name, an array or an iterable of feeds"
        raise ParameterError(_wrong("calibration", forms, source))
    if sequence_axis is None or source is None:
        if sequence_axis is not None:
            raise ParameterError("sequence_axis: says how to read calibration data: give both")
        return source
    if isinstance(source, (Sequences, CalibrationData)):
        raise ParameterError("sequence_axis: the calibration data say it themselves")
    return Sequences(source, sequence_axis)


def a_whole_number(argument: str, value: object, *, least: int) -> Any:
    """The argument, which must be a whole number from ``least`` on."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise ParameterError(_wrong(argument, f"a whole number from {least} on", value))


def readings_of(value: object) -> Any:
    """What outputs are, by their names."""
    words = (*value, *value.values()) if isinstance(value, Mapping) else (value,)
    if value is None or (isinstance(value, Mapping) and all(isinstance(each, str) for each in words)):
        return value
    raise ParameterError(_wrong("outputs", 'a dict such as {"logits": "classes"}', value))


def shapes_of(value: object) -> Any:
    """Sizes of inputs, by their names."""
    if value is None:
        return None
    if isinstance(value, Mapping) and all(isinstance(name, str) and _are_sizes(each) for name, each in value.items()):
        return {name: tuple(int(size) for size in sizes) for name, sizes in value.items()}
    raise ParameterError(_wrong("input_shapes", 'a dict such as {"images": (1, 3, 320, 320)}', value))


def _are_sizes(value: object) -> bool:
    whole = isinstance(value, (tuple, list, np.ndarray)) and all(isinstance(each, (int, np.integer)) for each in value)
    return bool(whole)


def a_metric(value: object) -> str:
    """The name of a metric."""
    if isinstance(value, str):
        return value
    raise ParameterError(_wrong("metric", 'a name such as "auto", or "module:function"', value))


def names_of(argument: str, value: str | Iterable[str]) -> tuple[str, ...]:
    """Several names, or one."""
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(each, str) for each in names):
        raise ParameterError(_wrong(argument, "names or patterns", value))
    return names


def _meant(argument: str, value: Any, kind: type[T], parse: Callable[[str], T], allowed: str) -> T | None:
    """What words or a number mean, in ``parse``'s own words where it refuses them."""
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        raise ParameterError(_wrong(argument, allowed, value))
    try:
        return parse(value if isinstance(value, str) else f"{float(value):.17g}")
    except ParameterError as error:
        raise ParameterError(f"{argument}: {str(error).partition(': ')[2]}") from None


def _wrong(argument: str, allowed: str, value: object) -> str:
    shown = repr(value)
    kind = type(value).__name__
    return f"{argument}: must be {allowed}, got {shown if len(shown) <= 60 else f'a value of type {kind}'}"
