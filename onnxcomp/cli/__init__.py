"""The command line: ``main`` runs one command and turns every error meant for the user into one line.

Exit codes: 0 done, and every budget met; 1 failed: something that was named cannot be read, run or written, or is over
its limit; 2 wrong usage: what was asked for cannot be (an unknown name, a value out of range, an option without the one
it needs); 3 the accuracy holds and the model is written, but a size, latency or time goal was missed; 130 interrupted.
Every error is one line, ``onnxcomp: ...``, on standard error. Of a fault of onnxcomp itself, -v or
ONNXCOMP_TRACEBACK=1 shows where it is.

A command is a file of this folder that defines ``command``; it is imported when it is named, and what is
slow to import (onnx, onnxruntime, numpy) only when it runs.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from onnxcomp.clock import clock
from onnxcomp.errors import OnnxcompError, WrongUsage
from onnxcomp.room import in_words, is_full

ERROR = 1
WRONG_USAGE = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

ALIKE_OPTIONS = 0.75  # dashes are alike in any case

TRACEBACK_VARIABLE = "ONNXCOMP_TRACEBACK"
VERBOSE = "onnxcomp.verbose"
GIVEN = "onnxcomp.given"

COMMANDS = (
    "optimize", "distill", "run", "inspect", "compare", "check", "bench", "doctor", "report", "explain", "expand",
    "pack", "unpack", "passes", "recipe",
)  # fmt: skip


class Commands(click.Group):
    """The top of the command line; commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"onnxcomp.cli.{cmd_name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with its first sentence, whole."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(each.help or "")) for name, each in found if each is not None])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note the words of the command, for receipts, and for whoever looks for a fault whether it was asked to say
        more."""
        ctx.meta[GIVEN] = tuple(args)
        ctx.meta[VERBOSE] = any(each == "--verbose" or re.fullmatch("-v+", each) for each in args)
        return super().parse_args(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the options that stand before the command; what is wrong with them is one line."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _end_usage(error)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command; of one that there is not, the one that was probably meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from onnxcomp.nearest import meant

            hint = meant(name, COMMANDS) or f" Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"{name}: no such command.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error is one line on standard error and an exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _end_usage(error)
        except WrongUsage as error:
            _end(_as_option(str(error)), WRONG_USAGE)
        except OnnxcompError as error:
            _end(str(error), ERROR)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED)
        except MemoryError:
            _end("out of memory", ERROR)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads the output has seen enough: click ends quietly
                raise
            if is_full(error):
                _end(in_words(error), ERROR)
            _end(": ".join(filter(None, [error.filename and str(error.filename), error.strerror or str(error)])), ERROR)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001  (a fault of onnxcomp: whoever called it gets a line and exit 1 too)
            if ctx.meta[VERBOSE] or os.environ.get(TRACEBACK_VARIABLE):
                traceback.print_exc()
            _end(f"a fault of onnxcomp itself (-v shows where): {type(error).__name__}: {error}", ERROR)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: onnxcomp optimize model.onnx --calib-data samples.npz",
)
@click.version_option(package_name="onnxcomp", message="onnxcomp %(version)s")
def commands() -> None:
    """Make an ONNX model smaller or faster within an accuracy budget, for stock ONNX Runtime."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; ends with SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not stop a run
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    commands.main(args, prog_name="onnxcomp", obj=clock())


def _first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _end(message: str, code: int) -> NoReturn:
    from onnxcomp.cli.printing.screen import visible

    click.echo(visible(f"onnxcomp: {' '.join(message.split())}"), err=True)
    raise click.exceptions.Exit(code)


def _end_usage(error: click.UsageError) -> NoReturn:
    """``onnxcomp: --max-drop: must be 0.01 ..., got 'abc'. See onnxcomp optimize -h.``"""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error
    path = "onnxcomp" if error.ctx is None else error.ctx.command_path
    message = _usage_words(error)
    _end(f"{message}{'' if message.endswith('?') else '.'} See {path} -h.", error.exit_code)


def _usage_words(error: click.UsageError) -> str:
    """What is wrong, by the option's or argument's name."""
    if isinstance(error, click.NoSuchOption):
        from onnxcomp.nearest import meant

        known = [] if error.ctx is None else [name for each in error.ctx.command.params for name in each.opts]
        return f"{error.option_name}: no such option.{meant(error.option_name, known, alike=ALIKE_OPTIONS)}".rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        option = error.param.opts[0] if isinstance(error.param, click.Option) else (error.param.name or "").upper()
        what = "is missing" if isinstance(error, click.MissingParameter) else error.message
        return f"{option}: {what}".rstrip(".")
    return error.format_message().rstrip(".")


def _as_option(message: str) -> str:
    """``metric: must be ...`` -> ``--metric: must be ...`` where that is an option."""
    from onnxcomp.cli.optimize import command

    known = {option for each in command.params for option in each.opts}
    return f"--{message}" if f"--{message.partition(': ')[0]}" in known else message


def _terminated(number: int, frame: object) -> None:
    """Unwind on SIGTERM, so that temporary folders are removed."""
    sys.exit(TERMINATED)
