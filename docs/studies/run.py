"""How every study's command runs: an error of ours is one sentence on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from metaopt_hpo.cli.interrupts import interruptible
from metaopt_hpo.errors import MetaOptError


def run(command: Callable[..., None]) -> None:
    """Run a function as a command with options, like `typer.run`; errors end it with exit code 1."""
    try:
        with interruptible():
            typer.run(command)
    except (MetaOptError, ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
