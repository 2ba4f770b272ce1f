"""``onnxcomp run PASS MODEL``: one pass alone; its options are made from its fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from onnxcomp.cli.running import options
from onnxcomp.contract import Parameter, Pass, parameters
from onnxcomp.errors import PassError
from onnxcomp.nearest import meant
from onnxcomp.recipe import AUTO
from onnxcomp.registry import get_pass, pass_names, pass_summary


class Field(options.ParamType):
    """A pass's field: its type, range and choices; a strength may also be "auto"."""

    def __init__(self, field: Parameter) -> None:
        self.field = field
        self.name = field.type.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.field.strengths and value == AUTO:
            return AUTO
        try:
            found = self.field.type(value)
        except ValueError:
            found = None
        if found is None or not self.field.accepts(found):
            self.fail(f"must be {_allowed(self.field)}, got {value or repr(value)}", param, ctx)
        return found


class Passes(click.Group):
    """One command a pass, made when it is named; the list is read from the sources, nothing is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return pass_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("_", "-")
        return command_of(get_pass(name)) if name in pass_names() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = meant(args[0], pass_names()) or f" Passes: {', '.join(pass_names())}."
            ctx.fail(f"{args[0]}: no such pass.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Passes"):
            formatter.write_dl([(name, pass_summary(name)) for name in pass_names()])


@click.command(cls=Passes, subcommand_metavar="PASS MODEL [OPTIONS]")
def command() -> None:
    """Run one pass alone: checked, verified, and taken back where it breaks the budget.

    Its own options: onnxcomp run PASS --help.
    """


class PassCommand(click.Command):
    """A pass's command, whose help keeps the pass's own options apart."""

    own: frozenset[str] = frozenset()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, wanted in (("Options of this pass", True), ("Options of every run", False)):
            rows = [
                each.get_help_record(ctx)
                for each in self.get_params(ctx)
                if (each.name in self.own) is wanted and isinstance(each, click.Option)
            ]
            found = [row for row in rows if row is not None]
            if found:
                with formatter.section(heading):
                    formatter.write_dl(found)


SHARED = options.stacked(
    click.option("--store", is_flag=True,
                 help="Store what the pass makes in the fewest bytes, too (store-compact), judged together with it."),
    options.output_options,
    options.data_options,
    options.input_shape_option,
    options.training_options,
    options.target_options,
    options.budget_options,
    options.limit_options,
    options.worker_options,
    options.json_option,
    options.noise_options,
)  # fmt: skip


def command_of(kind: type[Pass]) -> click.Command:
    """The command of a pass: its own options first, then those that every run has."""

    def body(**given: Any) -> None:
        from onnxcomp.cli.running import job
        from onnxcomp.recipe import single

        ctx = click.get_current_context()
        fields = {name: given.pop(name) for name in names}
        chosen = {name: value for name, value in fields.items() if _was_given(ctx, name)}
        auto = any(value == AUTO and fields_by_name[name].strengths for name, value in chosen.items())
        rewrite = kind(**{name: value for name, value in chosen.items() if value != AUTO})
        recipe = single(rewrite, auto=auto, store=given.pop("store"))
        job.run(job.Request(recipe=recipe, **given))

    fields_by_name = {each.name: each for each in parameters(kind)}
    names = list(fields_by_name)
    decorated = options.stacked(options.model_argument, *map(_option, fields_by_name.values()), SHARED)(body)
    taken = [each.name for each in SHARED(_nothing).__click_params__ if each.name in fields_by_name]
    if taken:
        raise PassError(f"{kind.pass_name()}: the field {taken[0]} is an option of every run. Rename the field.")
    text = f"{kind.summary()}\n\n{(kind.__doc__ or '').strip().partition(chr(10))[2]}".strip()
    made = click.command(kind.pass_name(), cls=PassCommand, help=text)(decorated)
    made.own = frozenset(names)
    return made


def _nothing() -> None:
    """Carry options."""


def _was_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


def _option(field: Parameter) -> Callable[[Any], Any]:
    flag = f"--{field.name.replace('_', '-')}"
    if field.type is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=_help(field))
    metavar = None if field.choices else {int: "N", float: "X", str: "TEXT"}[field.type]
    if field.choices:
        metavar = f"[{'|'.join(field.choices)}]"
    return click.option(flag, field.name, type=Field(field), default=None, metavar=metavar, help=_help(field))


def _help(field: Parameter) -> str:
    text = field.help[:1].upper() + field.help[1:]
    notes = [] if field.choices or field.type is bool else [_allowed(field).removesuffix(", or unset")]
    if field.default is not None:
        shown = str(field.default).lower() if field.type is bool else field.default
        notes.append(f"default: {shown}")
    return f"{text} [{'; '.join(notes)}]" if notes else text


def _allowed(field: Parameter) -> str:
    return f"{field.allowed}, or auto" if field.strengths else field.allowed
