"""The measured correction: what is measured on a problem whose noise and progress are known, and how it is used."""

import copy
import math

import pytest
import torch
from torch import nn

from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.balance import LEARNED_AT, PROPORTION, Balance, measurement, shrunk

LAW = {"expected": 5e-3, "within": 4.0}
WIDE = math.log(4) / 1.645
"""Standard deviation of ln of the best rate where a law is sure of it within a factor of 4."""


def measured(jitter: float, fall: float, *, noise: float = 0.0, last: float = 1.0) -> tuple[float, float]:
    """`Balance.factor` of a run whose loss is last + fall·ln(T / t) + H, with 2H = `jitter`."""
    generator = torch.Generator().manual_seed(0)
    balance = measurement(LEARNED_AT, 0.2, 0.12)
    assert balance is not None
    for step in range(LEARNED_AT * 32 // 100):
        loss = torch.tensor(last + fall * math.log(LEARNED_AT / (step + 1)) + jitter / 2)
        loss = loss + noise * torch.randn((), generator=generator)
        product = torch.tensor(jitter) if balance.wants_product(step) else None
        balance.see(step, loss, torch.tensor(1e-3), product)
    return balance.factor()


@pytest.mark.parametrize("want", [0.5, 1.0, 2.0])
def test_the_factor_is_the_balance_over_the_proportion(want: float) -> None:
    factor, spread = measured(jitter=0.1, fall=0.1 * PROPORTION * want)
    # the path falls between anchor and gradient too, which the product lacks
    assert factor == pytest.approx(want, rel=0.3)
    assert spread < 0.45


def test_noise_widens_the_spread_and_leaves_the_step_size_where_it_is() -> None:
    quiet, loud = (measured(0.1, 0.3, noise=n) for n in (0.01, 1.0))
    assert quiet[1] < loud[1]
    assert abs(math.log(shrunk(quiet[0], loud[1], WIDE))) < abs(math.log(shrunk(*quiet, WIDE)))
    assert shrunk(*measured(0.1, 0.3, noise=100.0), WIDE) == 1.0


def test_nothing_is_concluded_without_progress_or_where_the_data_are_learned_by_heart() -> None:
    assert measured(0.1, -0.1) == (1.0, math.inf)
    assert measured(1e-3, 1.0, last=1e-3)[0] > 1
    assert measured(1e-3, 0.05, last=-0.06) == (1.0, math.inf)  # 3 % of the first loss
    assert Balance((1, 2), (2, 3), 1.0).factor() == (1.0, math.inf)


def test_a_run_shorter_than_those_it_was_learned_on_believes_its_measurement_less() -> None:
    moved = []
    for horizon in (LEARNED_AT // 4, LEARNED_AT // 2, LEARNED_AT):
        balance = measurement(horizon, 0.2, 0.12)
        assert balance is not None
        for step in range(horizon * 32 // 100):
            loss = torch.tensor(1.0 + 0.05 * math.log(horizon / (step + 1)) + 0.05)
            product = torch.tensor(0.1) if balance.wants_product(step) else None
            balance.see(step, loss, torch.tensor(1e-3), product)
        moved.append(abs(math.log(shrunk(*balance.factor(), WIDE))))
    assert moved[0] < 0.7 * moved[2]
    assert moved[0] < moved[1] < moved[2]


def noisy_run(horizon: int = 600, stop: int | None = None, run=None, model=None, **options: object):  # type: ignore[no-untyped-def]
    if run is None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        run = make("metaoptimize", **options).build(model, horizon)
    sizes = []
    while run.steps_taken < (stop or horizon):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(run.steps_taken))
        loss = (model(x) - x.square().sum(1, keepdim=True) / 8 - x[:, :1]).square().mean()
        loss.backward()
        run.step(loss.detach())
        sizes.append(float(run.step_sizes()[0]))
    return run, model, sizes


def test_a_laws_step_size_is_corrected_once_after_the_measurement() -> None:
    _, _, sizes = noisy_run(**LAW)
    _, _, fixed = noisy_run(**LAW, correction=1.0)
    assert sizes[:192] == pytest.approx(fixed[:192])
    assert len(set(sizes[120:192])) == len(set(sizes[192:420])) == 1
    assert sizes[192] != sizes[120]


@pytest.mark.parametrize("at", [50, 80, 96, 97, 140, 200])
def test_resumed_while_it_measures_it_goes_on_as_it_would_have(at: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, whole, sizes = noisy_run(300, **LAW)
    run, model, _ = noisy_run(300, stop=at, **LAW)
    torch.save({"model": model.state_dict(), "run": run.state_dict()}, tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    other = copy.deepcopy(model)
    other.load_state_dict(saved["model"])
    again = make("metaoptimize", **LAW).build(other, 300)
    again.load_state_dict(saved["run"])
    _, _, rest = noisy_run(run=again, model=other, horizon=300)
    assert rest == sizes[at:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_nothing_is_measured_with_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    run = make("metaoptimize", **LAW).build(model, 300)
    _, _, sizes = noisy_run(300, run=run, model=model)
    assert sizes[30:200] == pytest.approx([LAW["expected"]] * 170, rel=1e-5)
