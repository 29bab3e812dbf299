"""The documentation of every version tag is built from that version's own sources."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_each_tag_has_its_own_site(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs mkdocs")
    spec = importlib.util.spec_from_file_location("versions", ROOT / "docs" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    versions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(versions)
    repo = tmp_path / "repo"
    (repo / "docs").mkdir(parents=True)
    (repo / "mkdocs.yml").write_text("site_name: x\nuse_directory_urls: false\n")

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=repo, check=True, capture_output=True)

    git("init", "-q")
    for version in ("v0.1.0", "v0.2.0", "v0.10.0"):
        (repo / "docs" / "index.md").write_text(f"# This is {version}\n")
        git("add", "-A")
        git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", version)
        git("tag", version)
    out = tmp_path / "out"
    assert versions.build(out, repo) == ["latest", "v0.10.0", "v0.2.0", "v0.1.0"]
    for version in ("v0.1.0", "v0.2.0", "v0.10.0"):
        assert f"This is {version}" in (out / version / "index.html").read_text()
    first = (out / "index.html").read_text()
    assert first.index("v0.10.0") < first.index("v0.2.0")
    # built again, what is there stays
    (out / "v0.1.0" / "index.html").write_text("kept")
    versions.build(out, repo)
    assert (out / "v0.1.0" / "index.html").read_text() == "kept"
