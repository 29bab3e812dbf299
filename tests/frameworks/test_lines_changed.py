"""How many lines of a training program change when its lr is to be found: at most three, the import among them."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMPORT = ["from metaopt_hpo import wrap"]

PAIRS = {
    "plain loop": ("plain_loop", "with_adamw", "with_wrap"),
    "Optuna objective": ("optuna_objective", "searched", "found"),
    "Hugging Face Trainer": ("huggingface_trainer", "with_adamw", "with_wrap"),
    "Lightning": ("lightning_module", "Student.configure_optimizers", "Wrapped.configure_optimizers"),
    "DDP and FSDP2": ("distributed_loop", "with_adamw", "with_wrap"),
}


def body(source: str, name: str) -> list[str]:
    """Statements of a function as a formatter writes them, without what it returns only to be printed."""
    found: ast.AST = ast.parse(source)
    for part in name.split("."):
        found = next(n for n in ast.walk(found) if getattr(n, "name", None) == part)
    assert isinstance(found, ast.FunctionDef)
    statements = [
        n for n in found.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
    ]
    last = statements[-1]
    if isinstance(last, ast.Return) and isinstance(last.value, ast.Tuple):
        statements[-1] = ast.Return(last.value.elts[0])  # without what was found
    return [line for s in statements for line in ast.unparse(s).splitlines()]


def lines_changed(plain: list[str], ours: list[str]) -> int:
    """Lines of ours that the plain program does not have; lines that fall away cost nothing."""
    return sum(line.startswith("+ ") for line in difflib.ndiff(plain, ours))


@pytest.mark.parametrize("where", PAIRS)
def test_at_most_three_lines_change(where: str) -> None:
    name, plain, ours = PAIRS[where]
    source = (EXAMPLES / f"{name}.py").read_text()
    assert IMPORT[0] in source
    changed = lines_changed(body(source, plain), IMPORT + body(source, ours))
    assert 1 < changed <= 3


def test_a_line_that_differs_counts_and_one_that_falls_away_does_not() -> None:
    assert lines_changed(["a", "b", "c"], ["a", "x"]) == 1
    assert lines_changed(["a"], ["a", "b", "c"]) == 2
