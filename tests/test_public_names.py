"""Every public name has an entry in the reference and an example in its docstring, and the examples run."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = (
    "metaopt_hpo",
    "metaopt_hpo.optim",
    "metaopt_hpo.strategies",
    "metaopt_hpo.scaling",
    "metaopt_hpo.theory",
    "metaopt_hpo_optuna",
    "metaopt_hpo_ray",
)
RAY = "metaopt_hpo_ray"


def names(*packages: str) -> Iterator[tuple[str, object]]:
    """Public names of packages with what they are, each thing once."""
    seen: set[int] = set()
    for package in packages:
        module = import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if not name.startswith("__") and id(thing) not in seen:
                seen.add(id(thing))
                yield f"{package}.{name}", thing


def entries() -> list[str]:
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "reference").glob("*.md"))
    return re.findall(r"^::: (\S+)", text, re.MULTILINE)


def thing(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def same(a: object, b: object) -> bool:
    # `metaopt_hpo.plan` is a room that is called: its function is what the reference describes
    return a is b or (isinstance(a, ModuleType) and getattr(b, "__module__", "").startswith(a.__name__))


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    described = [thing(e) for e in entries()]
    missing = [path for path, what in names(*PUBLIC) if not any(same(what, d) for d in described)]
    assert not missing, f"add '::: NAME' to a page of docs/reference for {missing}"


def test_every_public_name_has_an_example() -> None:
    missing = [path for path, what in names(*PUBLIC) if ">>> " not in (inspect.getdoc(what) or "")]
    assert not missing, f"add an Examples section to the docstrings of {missing}"


def test_every_entry_has_a_docstring() -> None:
    bare = [e for e in entries() if not (getattr(thing(e), "__doc__", None) or "").strip()]
    assert not bare, f"without a docstring: {bare}"


class AnyOutputUnlessSaid(doctest.OutputChecker):
    """Tune prints its progress; an example that shows no output is about what it does."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(
            want, "\n".join(got.splitlines()[-want.count("\n") :]) + "\n", optionflags
        )


def failures(path: str, what: object, checker: doctest.OutputChecker | None = None) -> list[str]:
    """What the examples of a name print that they do not say, or raise."""
    found: list[str] = []
    test = doctest.DocTestParser().get_doctest(
        inspect.getdoc(what) or "", {"__name__": "__main__"}, path, None, 0
    )
    runner = doctest.DocTestRunner(checker, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=found.append)
    return found


@pytest.mark.parametrize("package", [p for p in PUBLIC if p != RAY])
def test_examples_run(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna", reason="examples search with Optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for i, (path, what) in enumerate(names(package)):
        folder = tmp_path / str(i)
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert failures(path, what) == [], path


@pytest.mark.usefixtures("ray_running")
def test_examples_of_ray_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    for path, what in names(RAY):
        assert failures(path, what, AnyOutputUnlessSaid()) == [], path
