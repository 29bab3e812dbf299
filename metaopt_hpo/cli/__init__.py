"""The command line: one file a group of commands; commands are thin, rooms do the work."""

from __future__ import annotations

from metaopt_hpo.cli.app import app, main

__all__ = ["app", "main"]
