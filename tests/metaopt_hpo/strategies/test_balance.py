"""The measured correction: what is measured on a problem whose noise and progress are known, and how it is used."""

import copy
import math

import pytest
import torch
from torch import nn

from metaopt_hpo.optim import AdamW
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.balance import (
    EARLY,
    LEARNED_AT,
    PRIOR,
    PRIOR_NORMALISED,
    PROPORTION,
    USUAL,
    Balance,
    measurement,
    planned,
    shrunk,
)


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
    assert spread < 0.3


def test_noise_widens_the_spread_and_leaves_the_step_size_where_it_is() -> None:
    quiet, loud = (measured(0.1, 0.3, noise=n) for n in (0.01, 1.0))
    assert quiet[1] < loud[1]
    assert abs(math.log(shrunk(quiet[0], loud[1]))) < abs(math.log(shrunk(*quiet)))
    assert shrunk(*measured(0.1, 0.3, noise=100.0)) == 1.0


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
        moved.append(abs(math.log(shrunk(*balance.factor()))))
    assert moved[0] < 0.3 * moved[2]
    assert moved[0] < moved[1] < moved[2]


def test_an_early_commitment_is_corrected_by_less_and_not_by_a_measurement() -> None:
    def prior(horizon: int, find: float) -> float:
        return planned(None, AdamW(), horizon, find, 0.12)[0]

    assert prior(1000, USUAL) == prior(500, USUAL) == prior(10**5, 0.5) == PRIOR
    # the best rates of sixteen small networks over what runs adapted to (`studies.one_run.corrections`)
    assert prior(1000, EARLY) == pytest.approx(0.86, abs=0.02)
    assert prior(500, EARLY) == pytest.approx(1.15, abs=0.02)
    assert prior(100, EARLY) == PRIOR
    assert prior(1000, EARLY) < prior(1000, 0.16) < PRIOR
    assert measurement(1000, EARLY, 0.12) is None
    assert measurement(1000, USUAL, 0.12) is not None


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


def test_the_step_size_is_corrected_once_after_the_measurement() -> None:
    _, _, sizes = noisy_run(find=0.2)
    _, _, fixed = noisy_run(find=0.2, correction=1.4)
    assert sizes[:192] == pytest.approx(fixed[:192])
    assert len(set(sizes[120:192])) == len(set(sizes[192:420])) == 1
    assert sizes[192] != sizes[120]


@pytest.mark.parametrize("at", [50, 80, 96, 97, 140, 200])
def test_resumed_while_it_measures_it_goes_on_as_it_would_have(at: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, whole, sizes = noisy_run(300)
    run, model, _ = noisy_run(300, stop=at)
    torch.save({"model": model.state_dict(), "run": run.state_dict()}, tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    other = copy.deepcopy(model)
    other.load_state_dict(saved["model"])
    again = make("metaoptimize").build(other, 300)
    again.load_state_dict(saved["run"])
    _, _, rest = noisy_run(run=again, model=other, horizon=300)
    assert rest == sizes[at:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_a_model_with_batch_norm_is_corrected_by_its_own_prior_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    run = make("metaoptimize", find=0.2).build(model, 300)
    _, _, sizes = noisy_run(300, run=run, model=model)
    adapted = torch.tensor(sizes[40:59]).log().mean().exp()
    assert sizes[100] == pytest.approx(float(adapted) * PRIOR_NORMALISED, rel=0.1)
    assert len(set(sizes[61:200])) == 1
