"""Build the site of every version tag, and a page that lists them: python docs/versions.py FOLDER.

Each version is built from its own sources in a git worktree, with the tools of this environment; no network is needed.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from metaopt_hpo.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
TAGS = "v[0-9]*"


def build(folder: Path, root: Path = ROOT) -> list[str]:
    """Build what is missing of every version's site; the names built or found, newest first.

    Raises:
        SystemExit: a version does not build; the message is mkdocs'.
    """
    listed = _git(root, "tag", "--list", TAGS, "--sort=-version:refname").split()
    folder.mkdir(parents=True, exist_ok=True)
    for tag in listed:
        site = folder / tag
        if not (site / "index.html").is_file():
            _build_one(root, tag, site.resolve())
    _build_here(root, (folder / "latest").resolve())
    rows = "".join(
        f'<li><a href="{html.escape(n)}/index.html">{html.escape(n)}</a></li>' for n in ["latest", *listed]
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta name="color-scheme" content="light dark"><title>metaopt-hpo: versions</title></head>'
        f"<body><main><h1>metaopt-hpo: documentation by version</h1><ul>{rows}</ul></main></body></html>"
    )
    write_text(folder / "index.html", page)
    return ["latest", *listed]


def _build_one(root: Path, tag: str, site: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="metaopt-docs-") as name:
        tree = Path(name) / "tree"
        _git(root, "worktree", "add", "--detach", "--quiet", str(tree), tag)
        try:
            _build_here(tree, site)
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _build_here(tree: Path, site: Path) -> None:
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"the site of {site.name} does not build: {done.stderr.strip() or done.stdout.strip()}"
        )


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(f"{len(build(Path(sys.argv[1])))} versions are in {sys.argv[1]}/index.html")
