"""Each example prints ours beside the plain alternative, and ours is not worse by more than noise."""

import importlib.util
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOISE = 1.05
"""One seed of a small task: a few per cent are nothing."""

BEST_OF_EIGHT = 1.1
"""The search's best is the smallest of eight, chosen on the rows it is judged on; seeds differ by tens of per cent."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "needs", "noise"),
    [
        ("plain_loop", "torch", NOISE),
        ("huggingface_trainer", "transformers", NOISE),
        ("accelerate_loop", "accelerate", NOISE),
        ("lightning_module", "lightning", NOISE),
        ("optuna_objective", "optuna", BEST_OF_EIGHT),
    ],
)
def test_ours_is_not_worse_than_adamw(
    name: str, needs: str, noise: float, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(needs)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours, theirs = module.main()
    assert ours <= noise * theirs
    assert re.search(r"AdamW|default", capsys.readouterr().out)
