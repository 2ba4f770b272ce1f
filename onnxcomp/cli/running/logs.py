"""What ``-vv`` shows: every decision of a run, as the package tells it to ``logging``."""

from __future__ import annotations

import logging

import click


class _OnStandardError(logging.Handler):
    """Lines on standard error, names in them made harmless to a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        from onnxcomp.cli.printing.screen import visible

        click.echo(f"{record.relativeCreated / 1e3:7.1f} s  {visible(record.getMessage())}", err=True)


def show_decisions() -> None:
    """Have the package's log shown until the command ends."""
    handler = _OnStandardError()
    log = logging.getLogger("onnxcomp")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)

    def stop() -> None:
        log.removeHandler(handler)
        log.setLevel(level)

    click.get_current_context().call_on_close(stop)
