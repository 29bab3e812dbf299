"""The metaoptimize strategy: find, correct, hold, cool down."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from metaopt_hpo.optim.rules import Lion
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.balance import Balance, shrunk
from metaopt_hpo.strategies.kinds import slowness


def run_quadratic(horizon: int = 100, **options: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    run = make("metaoptimize", **options).build(model, horizon)
    sizes, losses = [], []
    for _ in range(horizon):
        loss = (model(torch.ones(1, 8)) - 3).square().sum()
        loss.backward()
        run.step(loss.detach())
        sizes.append(float(run.step_sizes()[0]))
        losses.append(loss.item())
    return run, sizes, losses


def test_without_meta_steps_it_is_a_wsd_schedule() -> None:
    _, sizes, _ = run_quadratic(lr=0.02, meta_lr=0.0, warmup=0.1, cooldown=0.2)
    assert sizes[:10] == pytest.approx([0.02 * (i + 1) / 10 for i in range(10)])
    assert sizes[10:80] == pytest.approx([0.02] * 70)
    assert sizes[80:] == pytest.approx([0.02 * (1 - i / 20) for i in range(20)])


def test_a_start_far_too_low_is_raised_and_the_loss_falls_further() -> None:
    _, sizes, losses = run_quadratic(lr=1e-4)
    _, _, stuck = run_quadratic(lr=1e-4, meta_lr=0.0)
    assert max(sizes) > 3e-4
    assert losses[-1] < 0.9 * stuck[-1]


def test_it_commits_to_the_mean_found_times_the_correction() -> None:
    options = {"lr": 1e-3, "warmup": 0.1, "find": 0.5, "cooldown": 0.3}
    _, found, _ = run_quadratic(**options, correction=1.0)
    _, corrected, _ = run_quadratic(**options, correction=2.0)
    assert corrected[:50] == found[:50]
    second_half = torch.tensor(found[24:49], dtype=torch.float64).log()
    assert found[50:70] == pytest.approx([found[50]] * 20)
    assert math.log(found[50]) == pytest.approx(second_half.mean().item(), abs=0.01)
    assert corrected[50] == pytest.approx(2 * found[50])


def test_the_cooldown_is_a_pure_ramp() -> None:
    _, sizes, _ = run_quadratic(lr=1e-3, cooldown=0.3)
    ratios = [b / a for a, b in pairwise(sizes[70:])]
    assert ratios == pytest.approx([(29 - i) / (30 - i) for i in range(29)])


def test_without_commitment_it_adapts_until_the_cooldown() -> None:
    _, sizes, _ = run_quadratic(lr=1e-3, find=1.0, cooldown=0.3)
    assert len(set(sizes[30:70])) == 40
    ratios = [b / a for a, b in pairwise(sizes[71:])]
    assert ratios == pytest.approx([(28 - i) / (29 - i) for i in range(28)])


def test_the_meta_step_follows_the_horizon_within_bounds() -> None:
    strategy = make("metaoptimize")
    assert strategy.horizon_meta_lr(2_000) == pytest.approx(2e-2)
    assert strategy.horizon_meta_lr(10) == 5e-2
    assert strategy.horizon_meta_lr(10**6) == 1e-3
    assert make("metaoptimize", meta_lr=3e-3).horizon_meta_lr(2_000) == 3e-3


@pytest.mark.parametrize("at", [5, 25, 29, 30, 31, 75])
def test_resumed_in_any_part_it_goes_on_as_it_would_have(at: int) -> None:
    _, sizes, _ = run_quadratic(lr=1e-3)
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    run = make("metaoptimize", lr=1e-3).build(model, 100)

    def steps(count: int) -> list[float]:
        out = []
        for _ in range(count):
            (model(torch.ones(1, 8)) - 3).square().sum().backward()
            run.step()
            out.append(float(run.step_sizes()[0]))
        return out

    first = steps(at)
    state, weights = copy.deepcopy((run.state_dict(), model.state_dict()))
    model = nn.Linear(8, 1, bias=False)
    model.load_state_dict(weights)
    run = make("metaoptimize", lr=1e-3).build(model, 100)
    run.load_state_dict(state)
    assert first + steps(100 - at) == sizes


def test_every_base_and_block_choice_trains() -> None:
    for base in ("sgd", "sgdm", "rmsprop", "adamw", "lion"):
        _, sizes, losses = run_quadratic(lr=1e-3, base=base)
        assert min(losses) < 0.5 * losses[0]
        assert max(sizes) > 1e-3
    for blocks in ("layer", "tensor"):
        run, _, _ = run_quadratic(blocks=blocks)
        assert run.step_sizes().shape == (1,)


def starts(**options: object) -> list[float]:
    """Step sizes of a run without ramps from some start."""
    return run_quadratic(warmup=0.0, **options)[1]


def test_a_start_above_the_limit_is_taken_at_the_limit() -> None:
    for lr in (0.1, 1.0, 100.0):
        assert starts(lr=lr, limit=0.01) == pytest.approx(starts(lr=0.05, limit=0.01))


def test_the_limit_is_relative_to_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    rms = float(model.weight.detach().square().mean().sqrt())
    first = starts(lr=1.0, limit=0.01, base="lion")[0]
    # what is seen after a step has moved by one meta step already
    meta = make("metaoptimize").horizon_meta_lr(100)
    limit = 0.01 * slowness(Lion()) * rms
    assert limit * math.exp(-1.001 * meta) <= first <= limit * math.exp(1.001 * meta)


def test_a_start_far_below_the_limit_is_soon_there() -> None:
    reference = starts(lr=1.0, limit=0.01)
    for lr in (1e-30, 1e-12, 1e-7):
        low = starts(lr=lr, limit=0.01)
        assert low[0] >= reference[0] / 17
        assert all(b < 2.2 * a for a, b in pairwise(low[:12]))
        assert min(abs(math.log(x / reference[0])) for x in low[:10]) < 0.1


class Adapter(nn.Module):
    """A frozen linear map with a trainable low-rank one beside it that starts at zero, as LoRA has it."""

    def __init__(self, frozen: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, frozen.in_features) / math.sqrt(frozen.in_features))
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + x @ self.a.T @ self.b.T


def network(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
    if kind == "LoRA":
        return nn.Sequential(*(Adapter(m) if isinstance(m, nn.Linear) else m for m in model))
    if kind == "zero head":
        nn.init.zeros_(model[4].weight)
    if kind == "all zero":
        for p in model.parameters():
            nn.init.zeros_(p)
        nn.init.ones_(model[0].bias)
        nn.init.ones_(model[2].bias)
    if kind == "head only":
        model[0].requires_grad_(False)
        model[2].requires_grad_(False)
    return model


@pytest.mark.parametrize("kind", ["dense", "LoRA", "zero head", "all zero", "head only"])
def test_the_start_hardly_matters_where_weights_or_first_gradients_are_zero(kind: str) -> None:
    ends, first = [], math.nan
    for lr in (1e-6, 1e-3, 10.0):
        torch.manual_seed(0)
        x = torch.randn(256, 8)
        y = torch.tanh(x @ torch.randn(8, 8) / 3)
        model = network(kind)
        run = make("metaoptimize", lr=lr).build(model, 150)
        for _ in range(150):
            loss = (model(x) - y).square().mean()
            loss.backward()
            run.step(loss)
            first = loss.item() if run.steps_taken == 1 else first
        ends.append(loss.item())
    assert max(ends) - min(ends) < 0.03 * first


def test_a_first_gradient_that_is_all_zero_changes_nothing_and_the_limit_comes_later() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False)
    before = model.weight.detach().clone()
    run = make("metaoptimize", lr=10.0, warmup=0.0).build(model, 100)
    for _ in range(3):
        (model(torch.ones(1, 8)) * 0).sum().backward()
        run.step()
    assert torch.equal(model.weight, before)
    (model(torch.ones(1, 8)) - 3).square().sum().backward()
    run.step()
    assert float(run.step_sizes()[0]) < 0.01


def test_without_a_limit_the_start_is_taken_as_it_is() -> None:
    assert starts(lr=1e-7, limit=None)[0] == pytest.approx(1e-7, rel=0.06)


@pytest.mark.parametrize("base", ["sgd", "sgdm", "rmsprop", "adamw", "lion"])
def test_twelve_starts_end_alike(base: str) -> None:
    ends = [run_quadratic(lr=10 ** (-6 + 5 * i / 11), base=base, horizon=200)[2][-1] for i in range(12)]
    first = run_quadratic(lr=1e-3, base=base, horizon=200)[2][0]
    assert max(ends) < 0.02 * first


def test_a_law_is_where_a_run_starts_and_confines_it() -> None:
    for expected in (1e-4, 1e-2):
        _, sizes, _ = run_quadratic(expected=expected, within=1.5, warmup=0.0, lr=0.3)
        assert sizes[0] == pytest.approx(expected, rel=0.06)
        held = sizes[:70]
        assert expected / 1.5 * 0.999 <= min(held) <= max(held) <= expected * 1.5 * 1.001


def test_a_run_from_a_law_measures_before_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the law's rate under the ramps until the measurement is over, and adapts where `meta_lr` asks for it."""
    horizon = 400
    monkeypatch.setattr(Balance, "factor", lambda balance: (4.0, 0.5))
    _, sizes, _ = run_quadratic(expected=1e-3, within=30.0, warmup=0.0, horizon=horizon)
    assert sizes[: round(0.32 * horizon)] == pytest.approx([1e-3] * round(0.32 * horizon), rel=1e-4)
    assert sizes[round(0.35 * horizon)] == pytest.approx(
        shrunk(4.0, 0.5, math.log(30) / 1.645) * 1e-3, rel=1e-4
    )
    _, adapted, _ = run_quadratic(expected=1e-3, within=30.0, warmup=0.0, horizon=horizon, meta_lr=0.05)
    assert adapted[20] != pytest.approx(1e-3, rel=0.05)
    _, plain, _ = run_quadratic(expected=1e-3, within=30.0, warmup=0.0, horizon=horizon, meta_lr=0.0)
    assert plain[: round(0.6 * horizon)] == pytest.approx([1e-3] * round(0.6 * horizon), rel=1e-4)


def test_the_surer_a_law_is_the_less_a_measurement_moves_its_rate() -> None:
    spreads = [make("metaoptimize", expected=1e-3, within=w).prior_spread for w in (1.1, 2.0, 20.0)]
    moved = [math.log(shrunk(3.0, 0.35, s)) for s in spreads]
    assert moved == sorted(moved)
    assert 0 < moved[0] < 0.04
    assert moved[2] > 0.9 * math.log(3.0)
    assert shrunk(3.0, math.inf, 1.0) == 1.0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit": 0.0}, "limit"),
        ({"expected": -1.0}, "expected"),
        ({"within": 1.0}, "within"),
        ({"meta_betas": (0.9, 1.0)}, "meta_betas"),
        ({"correction": 0.0}, "correction"),
        ({"find": 1.5}, "find"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        make("metaoptimize", **options)


@pytest.mark.parametrize("horizon", [None, 0, -3, 2.5, float("inf"), "100", True])
def test_an_unknown_horizon_is_refused_with_the_remedy(horizon: object) -> None:
    with pytest.raises(ValueError, match="where it is not known"):
        make("metaoptimize").build(nn.Linear(2, 1), horizon)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::metaopt_hpo.strategies.errors.RunWarning")
def test_past_the_horizon_the_last_step_size_stays() -> None:
    run, sizes, _ = run_quadratic(lr=1e-3)
    (run.optimizer.param_groups[0]["params"][0].sum()).backward()
    run.step()
    assert float(run.step_sizes()[0]) == pytest.approx(sizes[-1])


def test_parameters_without_gradients_and_zero_weights_do_not_stop_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.zero_()
    run = make("metaoptimize", lr=1e-3).build(model, 20)
    for _ in range(20):
        model[0](torch.ones(2, 4)).sum().backward()
        run.step()
    assert torch.isfinite(model[0].weight).all()


def test_accumulated_gradients_are_one_step() -> None:
    def train(parts: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(8, 1, bias=False)
        run = make("metaoptimize", lr=1e-3).build(model, 30)
        x = torch.linspace(-1, 1, 64).reshape(8, 8)
        for _ in range(30):
            for part in x.chunk(parts):
                ((model(part) - 1).square().mean() / parts).backward()
            run.step()
        return model.weight.detach()

    assert torch.allclose(train(1), train(4), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 2, 3, 10, 1023, 1024, 1025, 1026, 2100])
@pytest.mark.parametrize("lr", [1e-6, 1e-3])
def test_a_run_may_have_any_length(horizon: int, lr: float) -> None:
    run, sizes, losses = run_quadratic(horizon, lr=lr)
    assert run.steps_taken == horizon
    assert all(math.isfinite(v) for v in sizes + losses)
