"""A run reports on the shared grid, notices divergence, and resumes bitwise, in a new process too."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metaopt_hpo.strategies import make
from metaopt_hpo.training import CheckpointError, NoProgress, RunDiverged, RunStopped, TrainingRun
from metaopt_hpo.trials.record import report_grid, token_grid

torch.manual_seed(0)
X, Y = torch.randn(64, 4), torch.randn(64, 1)


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.randint(64, (8,), generator=torch.Generator().manual_seed(step))
    return X[index], Y[index]


def new_run(
    tokens: int = 512, cls: type[TrainingRun] = TrainingRun, strategy: str = "metaoptimize", **options
):  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))
    chosen = make(strategy, lr=options.pop("lr", 1e-2))
    options.setdefault("evaluate", lambda: (model(X) - Y).square().mean())
    return cls(model, chosen, size=40, tokens=tokens, batch=8, **options)


def train(run: TrainingRun, until: int | None = None) -> TrainingRun:
    with run:
        for step in run:
            if step == until:
                break
            x, y = data(step)
            parts = 2 if run.wants_halves else 1
            run.step(
                *(
                    (run.model(a) - b).square().mean()
                    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
                )
            )
    return run


def test_record_of_a_whole_run() -> None:
    r = train(new_run(report_stride=2)).record(trial="7")
    assert (r.state, r.tokens, r.target_tokens, r.steps, r.trial) == ("complete", 512, 512, 64, "7")
    assert r.cost == 6 * 40 * 512
    assert r.curve is not None
    grid = token_grid(512, start=8, stride=2)
    # one report a step at most: of several points passed in one step, the last
    assert list(r.curve.tokens) == sorted({max(t for t in grid if t <= 8 * k) for k in range(2, 65)})
    assert r.loss == r.curve.loss[-1] < r.initial_loss
    assert r.seconds > 0
    assert r.memory > 1e6
    assert r.found_lr > 0
    assert all(c == 6 * 40 * math.ceil(t / 8) * 8 for t, c in zip(r.curve.tokens, r.curve.cost, strict=True))


def test_a_run_whose_end_is_off_the_grid_reports_its_end() -> None:
    r = train(new_run(tokens=500)).record()
    assert r.curve is not None
    assert r.curve.tokens[-1] == r.tokens == 504  # whole steps


def test_curves_of_two_sizes_meet() -> None:
    a = train(new_run(tokens=512, report_stride=4)).record().curve
    b = train(new_run(tokens=300, report_stride=2)).record().curve
    assert a is not None
    assert b is not None
    assert {t for t in a.tokens if t < 300} <= set(b.tokens)


@pytest.mark.parametrize("strategy", ["metaoptimize", "wsd"])
def test_resumed_is_bitwise_equal(tmp_path: Path, strategy: str) -> None:
    whole = train(new_run(strategy=strategy))
    part = train(new_run(strategy=strategy, checkpoint=tmp_path / "c.pt"), until=40)
    assert part.state == "stopped"
    resumed = train(new_run(strategy=strategy, checkpoint=tmp_path / "c.pt"))
    assert resumed.recorder.seconds > 0
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    one, two = whole.record(), resumed.record()
    assert one.curve is not None
    assert two.curve is not None
    assert one.curve.loss == two.curve.loss
    assert one.curve.step_size == two.curve.step_size
    assert one.curve.tokens == two.curve.tokens
    assert one.cost == two.cost
    assert one.grad_noise == two.grad_noise or math.isnan(one.grad_noise)


def test_a_loop_that_ends_by_itself_is_stopped_with_the_tokens_reached() -> None:
    run = train(new_run(), until=37)
    record = run.record()
    assert record.state == "stopped"
    assert record.tokens == 37 * 8
    assert record.target_tokens == 512
    assert "37 of 64 planned steps" in record.reason
    assert record.curve is not None
    assert record.curve.tokens[-1] == 37 * 8
    assert record.loss == record.curve.loss[-1]


def test_a_loop_that_never_began_is_stopped_too() -> None:
    record = train(new_run(), until=0).record()
    assert (record.state, record.tokens, record.curve) == ("stopped", 0, None)


def test_a_run_that_learns_nothing_says_so() -> None:
    with pytest.warns(NoProgress, match="base 'adamw'.* made no progress.* before the first"):
        record = train(new_run(lr=1e-8, strategy="constant")).record()
    assert record.state == "complete"
    assert "made no progress" in record.reason
    assert not train(new_run()).record().reason


@settings(max_examples=100, deadline=None)
@given(st.integers(20, 10**6), st.integers(20, 10**6), st.integers(1, 2**15))
def test_few_early_and_many_late_reports_and_shared_points(one: int, two: int, batch: int) -> None:
    grids = []
    for steps in (one, two):
        grid = report_grid(steps * batch, start=batch)
        assert len(grid) <= 40
        early = sum(t < 0.05 * steps * batch for t in grid)
        assert early <= max(2, len(grid) / 4) or steps > 10**5
        gaps = [b - a for a, b in zip(grid, [*grid[1:], steps * batch], strict=True) if a > steps * batch / 4]
        assert max(gaps) <= 0.1 * steps * batch + batch
        grids.append(set(grid))
    low = max(min(grids[0]), min(grids[1]))
    high = min(one, two) * batch
    for octave in range(int(math.log2(max(1, low))), int(math.log2(high))):
        a, b = ({t for t in g if 2**octave < t <= 2 ** (octave + 1)} for g in grids)
        if 2**octave >= low and 2 ** (octave + 1) <= high and a and b:
            assert a <= b or b <= a


def test_the_number_of_reports_is_one_option() -> None:
    sizes = [len(report_grid(2000 * 2**10, start=2**10, reports=n)) for n in (1, 3, 8, 20, 40, 80)]
    assert all(a <= b for a, b in pairwise(sizes))
    assert all(size <= n for size, n in zip(sizes, (1, 3, 8, 20, 40, 80), strict=True))
    with pytest.raises(ValueError, match="reports"):
        report_grid(100, reports=0)


def test_epochs_are_recorded() -> None:
    assert train(new_run(epochs=4)).record().epochs == 4
    assert train(new_run(epochs=4), until=16).record().epochs == 1
    assert train(new_run(unique_tokens=64)).record().epochs == 8
    for wrong in ({"epochs": 2, "unique_tokens": 64}, {"epochs": 0}, {"unique_tokens": -1}):
        with pytest.raises(ValueError, match=r"unique_tokens|epochs"):
            new_run(**wrong)


def test_resumed_in_a_new_process_is_bitwise_equal(tmp_path: Path) -> None:
    code = f"""
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("t", {str(Path(__file__))!r})
t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
until = None if sys.argv[1] == "-" else int(sys.argv[1])
run = t.train(t.new_run(checkpoint=sys.argv[2]), until)
print(repr(float(run.loss)), repr([p.double().sum().item() for p in run.model.parameters()]))
"""

    def process(until: str, file: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, until, str(tmp_path / file)],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    whole = process("-", "whole.pt")
    process("29", "parts.pt")
    assert process("-", "parts.pt") == whole


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train(new_run(checkpoint=tmp_path / "c.pt"))
    again = new_run(checkpoint=tmp_path / "c.pt")
    with again:
        assert list(again) == []
    assert again.record().loss == first.record().loss
    assert again.state == "complete"


def test_checkpoint_of_another_batch_is_refused(tmp_path: Path) -> None:
    train(new_run(checkpoint=tmp_path / "c.pt"), until=40)
    run = new_run(checkpoint=tmp_path / "c.pt")
    run.batch = 16.0
    with pytest.raises(CheckpointError, match=r"batch 8\.0 instead of 16\.0"):
        run.__enter__()


def test_an_exploding_run_diverges_with_its_reason() -> None:
    with pytest.raises(RunDiverged, match="untrained model"):
        train(new_run(strategy="constant", lr=30.0))


def test_non_finite_training_loss_diverges_between_reports() -> None:
    run = new_run(evaluate=lambda: 1.0)  # as if no evaluation had seen it yet

    def train_on_nan() -> None:
        with run:
            for _ in run:
                run.step(torch.stack([p.sum() for p in run.model.parameters()]).sum() * math.nan)

    with pytest.raises(RunDiverged, match="10 steps in a row"):
        train_on_nan()
    assert run.record().state == "diverged"
    assert run.steps_taken == 10
    assert "in a row" in run.record().reason


def test_should_stop_prunes_with_its_reason_but_never_at_the_end() -> None:
    class Strict(TrainingRun):
        def should_stop(self) -> str | None:
            return "no hope" if self.tokens >= 100 else None

    run = new_run(cls=Strict)
    with pytest.raises(RunStopped, match="no hope"):
        train(run)
    r = run.record()
    assert (r.state, r.reason) == ("pruned", "no hope")
    assert 100 <= r.tokens < r.target_tokens

    class Late(TrainingRun):
        def should_stop(self) -> str | None:
            return "late" if self.tokens >= 512 else None

    assert train(new_run(cls=Late)).state == "complete"


def test_an_error_in_the_loop_is_recorded_and_not_swallowed() -> None:
    run = new_run()
    with pytest.raises(KeyError), run:
        raise KeyError("x")
    assert run.record().state == "failed"
    assert "KeyError" in run.record().reason


def test_an_interrupt_leaves_the_run_running() -> None:
    run = new_run()
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert run.state == "running"


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 0},
        {"tokens": float("nan")},
        {"report_stride": 0},
        {"checkpoint_every": 0},
        {"reports": 0},
    ],
)
def test_bad_arguments_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        new_run(**options)
    with pytest.raises(ValueError, match="at least one loss"):
        new_run().step()
