"""The command line: ``main`` runs one command and turns every error meant for the user into one line.

Exit codes: 0 written and every budget met; 1 an error, nothing written; 2 wrong usage; 3 the accuracy
holds and the model is written, but a size, latency or time goal was missed; 130 interrupted. Of a fault of onnxcomp
itself, -v or ONNXCOMP_TRACEBACK=1 shows where it is.

A command is a file of this folder that defines ``command``; it is imported when it is named, and what is
slow to import (onnx, onnxruntime, numpy) only when it runs.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from onnxcomp.clock import clock
from onnxcomp.errors import OnnxcompError, ParameterError
from onnxcomp.room import in_words, is_full

ERROR = 1
WRONG_USAGE = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

TRACEBACK_VARIABLE = "ONNXCOMP_TRACEBACK"
VERBOSE = "onnxcomp.verbose"

COMMANDS = (
    "optimize", "distill", "run", "inspect", "compare", "check", "bench", "expand", "pack", "unpack", "passes",
    "recipe",
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note, for whoever looks for a fault, whether the command was asked to say more."""
        ctx.meta[VERBOSE] = not {"-v", "--verbose"}.isdisjoint(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error is one line on standard error and an exit code."""
        try:
            return super().invoke(ctx)
        except ParameterError as error:
            _end(str(error), WRONG_USAGE)
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


def _end(message: str, code: int) -> NoReturn:
    from onnxcomp.cli.screen import visible

    click.echo(visible(f"onnxcomp: {' '.join(message.split())}"), err=True)
    raise click.exceptions.Exit(code)


def _terminated(number: int, frame: object) -> None:
    """Unwind on SIGTERM, so that temporary folders are removed."""
    sys.exit(TERMINATED)
