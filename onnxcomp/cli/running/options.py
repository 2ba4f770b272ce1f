"""Options that several commands share, and the words that they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcomp import budget
from onnxcomp.errors import ParameterError
from onnxcomp.input_shapes import parse_shape
from onnxcomp.target.processors import processor

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]  # generic for type checkers only, in the older versions of click
else:
    ParamType = click.ParamType

READINGS = ("classes", "values", "probabilities", "embedding", "labels", "ignore")  # as numerics.metrics.KINDS

EVERY_DECISION = 2  # times -v

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

PATH = click.Path(path_type=Path)
LIBRARY = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)


class Words(ParamType):
    """Text that a function of ``onnxcomp.budget`` understands, kept as text; what it refuses is wrong usage."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self.parse(value)
        except ParameterError as error:
            # click names the option itself
            self.fail(str(error).partition(": ")[2] or str(error), param, ctx)
        return str(value)


class Version(ParamType):
    """``1.17`` -> (1, 17)."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(".")
        if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
            self.fail(f"must be a version such as 1.17, got {value!r}", param, ctx)
        return int(parts[0]), int(parts[1])


def stacked(*decorators: Decorator[Any]) -> Decorator[Any]:
    """Several options as one decorator, shown in the order given."""

    def apply(function: F) -> F:
        for each in reversed(decorators):
            function = each(function)
        return function

    return apply


model_argument = click.argument("model", type=PATH)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")

def _verbosity(ctx: click.Context, param: click.Parameter, count: int) -> bool:
    """Whether to say more in the tables; from the second time on, every decision too."""
    if count >= EVERY_DECISION:
        from onnxcomp.cli.running.logs import show_decisions

        show_decisions()
    return count > 0


noise_options = stacked(
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors (and what --json asks for)."),
    click.option("-v", "--verbose", count=True, callback=_verbosity,
                 help="Name every weight and node in the tables; -vv: tell every decision as it is made."),
)  # fmt: skip

target_options = stacked(
    click.option("--ep", default="cpu", show_default=True, metavar="NAME",
                 help="Execution provider: cpu, cuda, openvino, ... or ONNX Runtime's own name."),
    click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Threads of each ONNX Runtime session."),
    click.option("--custom-ops", type=LIBRARY, multiple=True, metavar="LIBRARY",
                 help="Shared library with the model's custom operators. May be repeated."),
)  # fmt: skip

SEQUENCE_AXIS = "onnxcomp.sequence_axis"


def _note_axis(ctx: click.Context, param: click.Parameter, axis: int | None) -> None:
    ctx.meta[SEQUENCE_AXIS] = axis


def _as_sequences(ctx: click.Context, param: click.Parameter, source: str | None) -> Any:
    """The calibration data, as sequences where an axis of steps is named."""
    axis = ctx.meta.get(SEQUENCE_AXIS)
    if axis is None:
        return source
    if source is None:
        raise click.UsageError("--sequence-axis says how to read --calib-data: give both.")
    from onnxcomp.calibration import Sequences

    return Sequences(source, axis)


DATA_HELP = (
    ".npz (one array per input, `labels` if you have them), .npy, a folder of these or of test_data_set_*, or "
    "module:function."
)
RANDOM_HELP = " Without it inputs are drawn at random, which only shows breakage."


def _reading(*names: str, what: str, needed: bool = False) -> Decorator[Any]:
    """Where inputs come from, by the first of the names; how they are read, and what is drawn."""
    said = f"{what}: {DATA_HELP}{'' if needed else RANDOM_HELP}"
    return stacked(
        click.option(*names, "calib_data", metavar="SRC", callback=_as_sequences, required=needed, help=said),
        click.option("--sequence-axis", type=click.IntRange(min=0), metavar="N", callback=_note_axis, is_eager=True,
                     expose_value=False,
                     help="The arrays are sequences, such as (sequences, steps, ...): the axis of the steps, which the "
                          "model takes one at a time, counted from 0. A folder of numbered .npz needs none: each file "
                          "is a sequence."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
                     help="Seed of every random choice."),
    )  # fmt: skip


data_options = _reading("--calib-data", what="Inputs to calibrate and verify with")
learning_options = _reading("--calib-data", what="Inputs to learn from and verify with", needed=True)
inputs_options = _reading("--data", "--calib-data", what="Inputs to run on")


class Shape(ParamType):
    """``images=1,3,320,320`` -> ("images", (1, 3, 320, 320))."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_shape(value)
        except ParameterError as error:
            self.fail(str(error).partition(": ")[2], param, ctx)


def _by_name(
    ctx: click.Context, param: click.Parameter, shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> dict[str, tuple[int, ...]]:
    names = [name for name, _ in shapes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise click.BadParameter(f"{twice or 'the input'} is given twice", ctx, param)
    return dict(shapes)


input_shape_option = click.option(
    "--input-shape", "input_shapes", type=Shape(), multiple=True, callback=_by_name, metavar="NAME=SIZES",
    help="Shape of an input that the model leaves open, such as images=1,3,320,320: for random inputs, latencies and "
         "multiply-accumulates. May be repeated.",
)  # fmt: skip


ENGINES = ("auto", "ort", "torch")  # as training.engines.CHOICES

reference_option = click.option(
    "--reference",
    type=PATH,
    metavar="ORIGINAL",
    help="The model to hold the result against, where MODEL was made of it: what trains and repairs goes by it.",
)

own_training_options = stacked(
    click.option("--train-data", metavar="SRC",
                 help="Inputs to train on, without labels: as --calib-data. Without it, those to calibrate with."),
    click.option("--train-time", type=Words("time", budget.parse_time), metavar="TIME",
                 help="How long each training may take: 90s, 10m. Without it, as its epochs say."),
    click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True,
                 help="What computes gradients: torch (the extra onnxcomp[train]) where it is installed, or ort, ONNX "
                      "Runtime by rules."),
    click.option("--checkpoints", type=PATH, metavar="FOLDER",
                 help="Keep trainings there, so that a run that was killed goes on where it was."),
)  # fmt: skip

training_options = stacked(reference_option, own_training_options)


class Reading(ParamType):
    """``logits=classes`` -> ("logits", "classes")."""

    name = "reading"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, _, kind = str(value).rpartition("=")
        if not name or kind not in READINGS:
            self.fail(f"must be NAME={'|'.join(READINGS)}, got {value!r}; the file to write is -o", param, ctx)
        return name, kind


metric_option = click.option(
    "--metric", default="auto", show_default=True, metavar="NAME",
    help="auto (divergence from the original's outputs, no labels needed), kl, cosine, sqnr, mse, top1, "
         "or module:function.",
)  # fmt: skip

reading_option = click.option(
    "--output", "outputs", type=Reading(), multiple=True, metavar="NAME=KIND",
    help=f"What an output is, where the guess is wrong: {', '.join(READINGS)}. May be repeated.",
)  # fmt: skip

budget_options = stacked(
    click.option("--max-drop", type=Words("drop", budget.parse_drop), metavar="X",
                 help="How much worse the metric may get: 0.01 (its unit), 1% (relative), 30dB (noise) or none. "
                      "Default: the threshold of --metric auto."),
    metric_option,
    reading_option,
    click.option("--target-size", type=Words("size", budget.parse_size), metavar="SIZE",
                 help="Size to get down to: 4x (times smaller), 25% (of the original), 5MB, or bytes from 1024 on."),
    click.option("--target-latency", type=Words("latency", budget.parse_latency), metavar="TIME",
                 help="Latency to get down to: 0.5x (of the original's) or 5ms."),
    click.option("--time-budget", type=Words("time", budget.parse_time), metavar="TIME",
                 help="Longest time that the run may take: 90s, 10m."),
)  # fmt: skip

worker_options = stacked(
    click.option("--jobs", type=click.IntRange(min=1), metavar="N",
                 help="Tasks worked on at once; the result is the same for any number. [default: one for each core]"),
    click.option("--cluster", metavar="ADDRESS|local",
                 help="Weights are fitted by the workers of a Dask scheduler, such as tcp://10.0.0.1:8786, or of one "
                      "started here (needs the extra onnxcomp[cluster])."),
)  # fmt: skip

output_options = stacked(
    click.option("-o", "--out", "output", type=PATH, metavar="OUT",
                 help="File to write. [default: MODEL with .opt.onnx for .onnx]"),
    click.option("--force", is_flag=True, help="Replace files that exist."),
    click.option("--report", type=PATH, metavar="FILE.html", help="Write the receipt as a web page too."),
    click.option("--dry-run", is_flag=True, help="Say what would be done and write nothing."),
)  # fmt: skip

limit_options = stacked(
    click.option("--exclude", multiple=True, metavar="PATTERN",
                 help="Leave weights and nodes of these names alone: name or shell pattern, may be repeated."),
    click.option("--target-cpu", type=Words("cpu", processor), metavar="NAME",
                 help="Processor that the result is for, where it is not this one: amx, vnni, avx512, avx2, haswell, "
                      "neon-dotprod, neon, generic, ..."),
    click.option("--min-ort", type=Version(), metavar="VERSION",
                 help="The oldest ONNX Runtime that must load the result, such as 1.16."),
)  # fmt: skip


def default_output(model: Path, suffix: str = "opt") -> Path:
    """``net.onnx`` -> ``net.opt.onnx``, in the same folder."""
    stem = model.name.removesuffix(".onnx")
    return model.with_name(f"{stem}.{suffix}.onnx")
