"""Every Python block of the README and of docs/ runs, links and pictures exist, and the README stays short."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_TESTS = "optuna-"
"""How-tos whose names begin so are run step by step, diffs applied, in the Optuna plugin's own tests."""

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[str]:
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def demo_results(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A small comparison where documents expect the demo's."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "metaopt_hpo" / "comparison"))
    from test_protocol import PLAN
    from toy import DictEngine, Parabola

    from metaopt_hpo.comparison import protocol

    monkeypatch.setattr(protocol, "get_engine", lambda name: DictEngine())
    protocol.compare(Parabola(), PLAN, folder, workers=1)


RUN_HERE = [d for d in DOCUMENTS if blocks(d) and not d.name.startswith(OWN_TESTS)]


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_blocks_run_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "results/demo" in path.read_text(encoding="utf-8"):
        demo_results(monkeypatch, tmp_path / "results" / "demo")
    script = tmp_path / "document.py"
    code = "\n\n".join(blocks(path))
    # spawned workers import the main module again
    script.write_text(
        f'if __name__ == "__main__":\n{re.sub("^", "    ", code, flags=re.MULTILINE)}\n', encoding="utf-8"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


SHELL = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_plans_of_documents_are_made_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from metaopt_hpo.cli import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    job = next(b for b in blocks(ROOT / "docs" / "your-job.md") if "my_job.py" in b)
    exec(job, {})
    text = "\n".join(d.read_text(encoding="utf-8") for d in DOCUMENTS)
    shell = "\n".join(SHELL.findall(text)).replace("\\\n", " ")
    lines = [line for line in shell.splitlines() if line.startswith("metaopt-hpo plan ")]
    assert len(lines) >= 3
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output}{done.exception}"


def test_the_readme_shows_running_code_at_once_and_fits_a_screen_or_two() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text[: text.index("```python")].split()) <= 60
    assert len(text.split()) <= 900


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as the site makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slugify(re.sub(r"[`*]", "", h), "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_links_and_pictures_exist() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            found = path.parent / name if name else path
            assert found.exists(), f"{path.name} points to {target}"
            if anchor:
                assert anchor in anchors(found), f"{path.name} points to {target}"


def test_every_code_of_a_law_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sources = "\n".join(
        p.read_text(encoding="utf-8") for p in (ROOT / "metaopt_hpo" / "scaling").rglob("*.py")
    )
    codes = set(re.findall(r"(?:Caution|LawRefused)\(\s*\"([a-z-]+)\"", sources))
    assert len(codes) > 15
    missing = {c for c in codes if f"`{c}`" not in text and not c.startswith("left-out-")}
    assert not missing, f"say in docs/troubleshooting.md what {sorted(missing)} mean"
