"""What happens to pages when the site is built: commands get their help, links into the repository become names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

COMMANDS = "<!-- commands -->"


LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#]+)\)")

DOCS = Path(__file__).parent


def on_config(config: Any) -> Any:
    """Say in the heading which version the pages describe."""
    from metaopt_hpo import __version__

    config["site_name"] = f"{config['site_name']} {__version__}"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put each command's help where a page asks for it, and name files that are no part of the site."""
    folder = Path(page.file.abs_src_path).parent

    def named(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(DOCS):
            return match[0]
        return f"{match[1]} (`{target.relative_to(DOCS.parent)}` in the repository)"

    markdown = LINK.sub(named, markdown)
    return markdown.replace(COMMANDS, commands()) if COMMANDS in markdown else markdown


def commands() -> str:
    """Name, one line and help of every command, as Markdown."""
    from metaopt_hpo.cli import app

    group = typer.main.get_command(app)
    names = sorted(getattr(group, "commands", {}))
    run = CliRunner(
        env={"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    )
    parts = []
    for name in names:
        shown = run.invoke(app, [name, "--help"])
        parts.append(f"## metaopt-hpo {name}\n\n```text\n{shown.output.strip()}\n```\n")
    return "\n".join(parts)
