"""Samples opened as a model wants them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.data.broken_samples import without_broken
from onnxcomp.calibration.data.calibration_data import FEW_RANDOM_BATCHES, RANDOM_BATCHES
from onnxcomp.calibration.states.rollout import rolled_out
from onnxcomp.calibration.states.states import named_states
from onnxcomp.errors import TargetError
from onnxcomp.graph.dataflow.time_axes import time_axes
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.report.inspection import custom_operators
from onnxcomp.graph.storage.amplified import refuse_amplified
from onnxcomp.model import Model
from onnxcomp.pipeline.costs import ONE_LOAD_BYTES
from onnxcomp.target import Target

FRUGAL_BYTES = 10**9  # from which on packing weights takes longer than it saves in the few runs on random inputs
RANDOM_RUN_S = 30.0  # on random inputs, which show breakage only, a model is not run for longer
LARGE_BYTES = 2**27  # from which on few samples run at once: what they save is little beside such products
LARGE_BATCH = 8
LARGE_TRIED = 2  # samples of the first batch that such a model is tried on: whether samples run together shows on two


def open_data(
    model: Model, source: Any, target: Target, seed: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> CalibrationData:
    """The calibration data for a model, without broken samples and with states of first steps rolled out, or random
    inputs without a source.

    shapes: of inputs, as the user wants them: random ones are drawn so, and latencies measured at them.
    Raises CalibrationError for data that does not fit, TargetError for a model that does not load, ParameterError for
    shapes that the model cannot have.
    """
    refuse_amplified(model)
    if isinstance(source, CalibrationData) and not shapes:
        return source
    try:
        frugal = source is None and model.size_bytes >= FRUGAL_BYTES
        with model.opened_on(functools.partial(target.session, frugal=True) if frugal else target.session) as session:
            barred = time_axes(model)
            if isinstance(source, CalibrationData):
                return source.timed_at(shapes or {}, session.run)
            if source is None:
                run = functools.partial(session.run, limit_s=RANDOM_RUN_S)
                batches = FEW_RANDOM_BATCHES if model.size_bytes > ONE_LOAD_BYTES else RANDOM_BATCHES
                drawn: dict[str, Any] = {"seed": seed, "run": run, "batches": batches, "not_samples": barred}
                return CalibrationData.random(session.inputs, **drawn, shapes=shapes)
            states = {state.input for state in named_states(model, session)}
            fitted: dict[str, Any] = {"run": session.run, "states": states, "not_samples": barred}
            if model.size_bytes >= LARGE_BYTES:
                fitted |= {"batch_size": LARGE_BATCH, "tried": LARGE_TRIED}
            data = CalibrationData.open(source, session.inputs, **fitted)
            data = rolled_out(model, session, without_broken(data, session.run), seed=seed)
            return data.timed_at(shapes, session.run) if shapes else data
    except TargetError as error:
        raise TargetError(f"{model.name}: {_without_library(model, target) or error}") from error


def _without_library(model: Model, target: Target) -> str | None:
    """That a model did not load for lack of its custom operators, or None."""
    unknown = custom_operators(open_graph(model))
    if not unknown or target.custom_ops:
        return None
    return f"ONNX Runtime does not have {', '.join(unknown)}. Give the library that does with --custom-ops."
