"""``onnxcomp distill TEACHER [STUDENT]``: train one model to give what another does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp import budget
from onnxcomp.cli.running import options


@click.command()
@click.argument("teacher", type=options.PATH)
@click.argument("student", type=options.PATH, required=False)
@click.option("--student", "shape", metavar="SHAPE",
              help="Make the student of the teacher, such as width=0.5,depth=0.75,separable: the shares of units "
                   "and of blocks that stay, convolutions as depthwise and pointwise ones.")  # fmt: skip
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="Times through the samples. [default: 20, within 400 to 8000 steps and --train-time]")  # fmt: skip
@click.option("--mixup", type=click.FloatRange(min=0, max=100), default=0.0, metavar="A",
              help="Mix each sample of a step with another, in shares drawn from Beta(A, A); teacher and student see "
                   "the same. 1: any share alike; 0: none. [default: 0]")  # fmt: skip
@options.output_options
@options.learning_options
@options.input_shape_option
@options.own_training_options
@options.target_options
@options.budget_options
@options.limit_options
@options.worker_options
@options.json_option
@options.noise_options
def command(
    teacher: Path, student: Path | None, shape: str | None, epochs: float | None, mixup: float, **given: Any
) -> None:
    """Train STUDENT, or one made of TEACHER, to give what TEACHER does, without labels.

    The outputs that have the same names are held against each other. Without --max-drop the student is written however
    far it is from its teacher, and how far that is is said.
    """
    from onnxcomp.cli.running import job
    from onnxcomp.recipe.student import StudentShape, distilling

    if (student is None) == (shape is None):
        raise click.UsageError("give a STUDENT, or say with --student which to make of TEACHER: one of both.")
    if given["max_drop"] is None:
        given["max_drop"] = budget.NO_LIMIT
    training = {"mixup": mixup} | ({} if epochs is None else {"epochs": epochs})
    recipe = distilling(StudentShape.parse(shape or ""), **training)
    reference = None if student is None else teacher
    given["output"] = given["output"] or options.default_output(student or teacher, "student")
    job.run(job.Request(model=student or teacher, recipe=recipe, reference=reference, **given))
