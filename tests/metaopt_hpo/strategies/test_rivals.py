"""Every rival keeps the promises of a strategy, on the installed version of its package."""

import io
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.strategies import LRRun, StrategyError, available, get, make
from metaopt_hpo.strategies.registry import BUILT_IN
from metaopt_hpo.strategies.rivals import Rival
from metaopt_hpo.training import TrainingRun
from metaopt_hpo.workloads import TextLM, train

RIVALS = sorted(name for name, module in BUILT_IN.items() if ".rivals" in module)
PACKAGED = sorted(set(RIVALS) - {"adalrs"})
"""Built on `Rival`; AdaLRS is a schedule of ours, as its authors have published no package."""
NEED_LR = {"schedule-free", "adopt"}
CANNOT_RESUME = {"mechanic", "gdtuo"}
JOB = TextLM(width=16, context=16, sequences=4)
BATCHES = torch.randn(64, 16, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 1.0], [2.0, 1.0]])


class Small(nn.Module):
    """A matrix, a norm, a bias, an embedding's stand-in, and a layer the loss never uses."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(4, 8)
            self.norm = nn.LayerNorm(8)
            self.second = nn.Linear(8, 2)
            self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.norm(self.first(x))))
        return out


def advance(model: nn.Module, run: LRRun, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        x = BATCHES[step]
        loss = (model(x) - x @ TARGET).square().mean()
        loss.backward()
        run.step(loss.detach())
        losses.append(loss.item())
    return losses


def started(name: str, horizon: int = 24, **options: Any) -> tuple[Small, LRRun]:
    model = Small()
    return model, make(name, **options).build(model, horizon)


def dtypes(run: LRRun) -> list[dict[str, torch.dtype]]:
    """Of the optimizer's state, parameter by parameter: some packages keep part of it in bfloat16."""
    states = [run.optimizer.state[p] for g in run.optimizer.param_groups for p in g["params"]]
    return [{n: v.dtype for n, v in sorted(s.items()) if isinstance(v, Tensor)} for s in states]


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as a checkpoint goes: nothing in it may need code to be run."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_the_list_is_that_of_the_papers() -> None:
    assert set(RIVALS) == {
        *("prodigy", "dog", "ldog", "d-adaptation", "schedule-free", "prodigy-schedule-free", "mechanic"),
        *("momo", "gdtuo", "hypergradient", "adamg", "adopt", "adalrs"),
    }
    assert set(RIVALS) <= set(available())
    assert {name for name in RIVALS if not get(name).tunes_lr} == NEED_LR


@pytest.mark.parametrize("name", RIVALS)
def test_it_trains_a_language_model_at_its_own_defaults(name: str) -> None:
    torch.manual_seed(0)
    run = train(JOB, make(name), tokens=JOB.batch * 120, report_stride=8)
    record = run.record()
    assert record.state == "complete", record.reason
    assert record.loss < 0.9 * record.initial_loss
    assert record.strategy == name
    assert record.curve is not None
    assert all(math.isfinite(s) for s in record.curve.step_size)
    assert max(record.curve.step_size) > 0
    assert math.isfinite(record.found_lr) == get(name).tunes_lr


@pytest.mark.parametrize("name", RIVALS)
def test_a_resumed_run_is_the_same_run_or_refused_by_name(name: str) -> None:
    whole_model, whole = started(name)
    losses = advance(whole_model, whole, 0, 24)
    model, run = started(name)
    advance(model, run, 0, 10)
    state = saved({"model": model.state_dict(), "run": run.state_dict()})
    again, resumed = started(name)
    again.load_state_dict(state["model"])
    if name in CANNOT_RESUME:
        before = [p.clone() for p in again.parameters()]
        with pytest.raises(StrategyError, match=rf"'{name}' cannot be resumed.*start the run again"):
            resumed.load_state_dict(state["run"])
        assert all(torch.equal(a, b) for a, b in zip(before, again.parameters(), strict=True))
        return
    resumed.load_state_dict(state["run"])
    assert torch.equal(resumed.step_sizes(), run.step_sizes())
    assert dtypes(resumed) == dtypes(run)
    assert advance(again, resumed, 10, 24) == losses[10:]
    for a, b in zip(whole_model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(resumed.step_sizes(), whole.step_sizes())


@pytest.mark.parametrize("name", RIVALS)
def test_unused_parameters_neither_crash_it_nor_move(name: str) -> None:
    model, run = started(name)
    before = model.unused.weight.clone()
    advance(model, run, 0, 5)
    assert torch.equal(before, model.unused.weight)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(set(PACKAGED) - {"gdtuo", "dog", "ldog"}))
def test_decay_pulls_matrices_only(name: str) -> None:
    """Twice the same first steps, with and without decay: only what decays may differ at once."""
    options = {"max_grad_norm": None, "base": get(name).rule}  # type: ignore[attr-defined]
    bare, run = started(name, weight_decay=0.0, **options)
    with_decay, decayed = started(name, weight_decay=0.5, **options)
    groups = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in decayed.optimizer.param_groups}
    assert groups == {0.5: {2}, 0.0: {1}}
    # ADOPT's first step only measures; a step of size 0 decays nothing
    for step in range(12):
        advance(bare, run, step, step + 1)
        advance(with_decay, decayed, step, step + 1)
    ratio = with_decay.first.weight.norm() / bare.first.weight.norm()
    assert ratio < 1


@pytest.mark.parametrize("name", ["dog", "ldog"])
def test_dogs_decay_leaves_norms_alone(name: str) -> None:
    _, run = started(name, weight_decay=0.5)
    assert {g["weight_decay"]: {p.ndim for p in g["params"]} for g in run.optimizer.param_groups} == {
        0.5: {2},
        0.0: {1},
    }


@pytest.mark.parametrize("name", RIVALS)
def test_evaluation_leaves_the_run_as_it_was(name: str) -> None:
    def losses(evaluate: bool) -> list[float]:
        model, run = started(name)
        out = []
        for step in range(16):
            out += advance(model, run, step, step + 1)
            if evaluate and step % 4 == 0:
                run.eval()
                run.eval()
                run.train()
                run.train()
        return out

    assert losses(True) == pytest.approx(losses(False), rel=1e-4)


@pytest.mark.parametrize("name", ["dog", "ldog", "schedule-free", "prodigy-schedule-free"])
def test_averaging_methods_swap_weights_and_train_only_in_training_mode(name: str) -> None:
    model, run = started(name, **({"d0": 1e-2} if "prodigy" in name else {}))
    advance(model, run, 0, 8)
    trained = model.first.weight.clone()
    run.eval()
    assert not torch.equal(trained, model.first.weight)
    with pytest.raises(StrategyError, match=r"call run\.train\(\)"):
        advance(model, run, 8, 9)
    run.train()
    torch.testing.assert_close(trained, model.first.weight)


def test_dog_evaluates_the_polynomial_average() -> None:
    model, run = started("dog", reps_rel=1e-2, average_gamma=3.0)
    expected = model.first.weight.detach().clone()
    for step in range(6):
        advance(model, run, step, step + 1)
        expected += (1 + 3.0) / (step + 1 + 3.0) * (model.first.weight.detach() - expected)
    run.eval()
    torch.testing.assert_close(model.first.weight.detach(), expected)
    with pytest.raises(StrategyError, match="before saving"):
        run.state_dict()


def test_dog_steps_are_distance_over_gradients() -> None:
    model = nn.Linear(4, 2, bias=False)
    run = make("dog", reps_rel=1e-2).build(model, 10)
    start = model.weight.detach().clone()
    distance, squares = 1e-2 * (1 + float(start.norm())), 1e-8
    for step in range(8):
        weight = model.weight.detach().clone()
        distance = max(distance, float((weight - start).norm()))
        loss = (model(BATCHES[step]) - BATCHES[step] @ TARGET).square().mean()
        loss.backward()
        assert model.weight.grad is not None
        grad = model.weight.grad.clone()
        squares += float(grad.square().sum())
        run.step(loss)
        (size,) = run.step_sizes().tolist()
        assert size == pytest.approx(distance / math.sqrt(squares), rel=1e-5)
        torch.testing.assert_close(model.weight.detach(), weight - size * grad)


def test_dog_starts_larger_with_batch_norm() -> None:
    plain = make("dog").build(nn.Linear(4, 4), 10)
    normed = make("dog").build(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 10)
    assert plain.optimizer.param_groups[0]["reps_rel"] == 1e-6
    assert normed.optimizer.param_groups[0]["reps_rel"] == 1e-4


def test_momo_needs_the_loss_and_never_exceeds_its_lr() -> None:
    model, run = started("momo", lr=0.5)
    (model(BATCHES[0])).square().mean().backward()
    with pytest.raises(StrategyError, match="momo needs the training loss"):
        run.step()
    model, run = started("momo", lr=0.5)
    sizes = []
    for step in range(20):
        advance(model, run, step, step + 1)
        sizes.append(float(run.step_sizes()[0]))
    assert all(0 <= s <= 0.5 / (1 - 0.9 ** (i + 1)) + 1e-6 for i, s in enumerate(sizes))
    assert min(sizes) < 0.5, "the model of the loss never bound"


def test_mechanic_scales_the_base_and_an_exception_leaves_gradients_on() -> None:
    model, run = started("mechanic", warmup=0.0, schedule="constant")
    advance(model, run, 0, 6)
    assert float(run.step_sizes()[0]) > 1e-8
    before = torch.is_grad_enabled()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    run.optimizer.state["_mechanic"].clear()  # type: ignore[index]
    with pytest.raises(KeyError):
        run.step()
    assert torch.is_grad_enabled() == before


def test_gdtuo_trains_its_lr_by_the_gradient_of_the_next_loss() -> None:
    """On a linear loss a larger step is always better: the trained lr must grow by meta_lr · Σ g·u."""
    p = nn.Parameter(torch.zeros(5))
    run = make("gdtuo", lr=1e-2, meta_lr=1e-2).build([p], 10)
    sizes = []
    for _ in range(3):
        p.sum().backward()
        run.step()
        sizes.append(float(run.step_sizes()[0]))
    # the step of Adam on a constant gradient is 1 a weight, so the gradient at the lr is −5
    assert sizes == pytest.approx([1e-2, 1e-2 + 5e-2, 1e-2 + 10e-2], rel=1e-3)


def test_half_batches_are_as_good_as_whole_ones_for_gdtuo() -> None:
    def weights(parts: int) -> Tensor:
        model, run = started("gdtuo")
        for step in range(5):
            x = BATCHES[step]
            for part in x.chunk(parts):
                ((model(part) - part @ TARGET).square().mean() / parts).backward()
            run.step()
        return model.first.weight.detach()

    torch.testing.assert_close(weights(1), weights(2))


@pytest.mark.parametrize("name", ["prodigy", "d-adaptation"])
def test_distance_estimates_find_a_step_size_from_far_below(name: str) -> None:
    model, run = started(name, horizon=60, schedule="constant")
    advance(model, run, 0, 60)
    assert float(run.step_sizes()[0]) > 1e3 * 1e-6


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_multiply_each_groups_own_lr(schedule: str) -> None:
    model, run = started("adopt", horizon=20, schedule=schedule, warmup=0.2, lr=1e-2)
    run.optimizer.param_groups[1]["initial_lr"] = 1e-3  # a relative lr, as muP sets them
    factors = []
    for step in range(20):
        advance(model, run, step, step + 1)
        matrix, rest = run.step_sizes().tolist()
        assert rest == pytest.approx(matrix / 10)
        factors.append(matrix / 1e-2)
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors == pytest.approx(
        [get("adopt")(schedule=schedule, warmup=0.2).multiplier(s, 20) for s in range(20)]
    )
    assert (factors[-1] < 0.1) == (schedule != "constant")


@pytest.mark.parametrize("name", RIVALS)
def test_unknown_options_and_values_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' has no option 'momentun'; it has .*lr"):
        make(name, momentun=1)
    with pytest.raises(ValueError, match="lr must be"):
        make(name, lr=-1.0)
    with pytest.raises(ValueError, match=f"base of strategy '{name}'"):
        make(name, base="lion")
    with pytest.raises(ValueError, match="horizon"):
        make(name).build(Small(), 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prodigy", {"schedule": "step"}, "schedule must be one of"),
        ("prodigy", {"d0": 0.0}, "d0"),
        ("d-adaptation", {"growth_rate": 0.9}, "growth_rate"),
        ("dog", {"reps_rel": -1.0}, "reps_rel"),
        ("schedule-free", {"betas": (0.0, 0.9)}, "betas"),
        ("gdtuo", {"weight_decay": 0.1}, "weight_decay of gdtuo must be 0"),
        ("hypergradient", {"kind": "both"}, "kind"),
        ("adamg", {"beta3": 1.0}, "beta3"),
        ("mechanic", {"s_decay": -1.0}, "s_decay"),
        ("momo", {"lower_bound": math.nan}, "lower_bound"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_missing_package_names_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = get(name)
    assert issubclass(cls, Rival)
    if not cls.package:
        pytest.skip("our own preset")
    monkeypatch.setitem(sys.modules, cls.module, None)
    with pytest.raises(StrategyError, match=rf"'{cls.package}'.*metaopt-hpo\[baselines\]"):
        make(name).build(Small(), 10)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_step_without_gradients_is_refused(name: str) -> None:
    _, run = started(name)
    with pytest.raises(StrategyError, match=r"loss\.backward\(\)"):
        run.step(torch.tensor(1.0))


@pytest.mark.parametrize("name", ["mechanic", "schedule-free"])
def test_checkpoints_of_a_run_resume_or_say_why_not(name: str, tmp_path: Any) -> None:
    def start() -> TrainingRun:
        model = JOB.model(0)
        return TrainingRun(
            model,
            make(name),
            size=JOB.size,
            tokens=JOB.batch * 12,
            batch=JOB.batch,
            evaluate=lambda: JOB.held_out_loss(model),
            checkpoint=tmp_path / "run.pt",
        )

    with start() as run:
        for step in run:
            if step == 8:
                break
            run.step(*JOB.losses(run.model, step, 0, 1))
    if name == "mechanic":
        with pytest.raises(StrategyError, match="cannot be resumed"):
            start().__enter__()
    else:
        with start() as resumed:
            assert next(iter(resumed)) == 8


@pytest.mark.parametrize("lr", [1e-4, 3e-3])
def test_adalrs_raises_a_low_rate_and_goes_back_from_one_that_does_not_help(lr: float) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.full((4,), 3.0))
    run = make("adalrs", lr=lr, weight_decay=0.0).build([p], 400)
    rates = []
    for _ in range(400):
        loss = (p - 1).square().sum()
        loss.backward()
        run.step(loss.detach())
        rates.append(float(run.step_sizes()[0]))
    assert max(rates) > 2 * lr
    assert run.found_lr is not None
    assert run.found_lr < max(rates)  # the last trial was taken back
    assert float(loss.detach()) < 16  # where it began
    with pytest.raises(StrategyError, match="training loss"):
        make("adalrs").build([nn.Parameter(torch.ones(2))], 10).step()


def test_adalrs_refuses_factors_that_do_not_search() -> None:
    with pytest.raises(ValueError, match="up > 1 > down > 0"):
        make("adalrs", up=0.5)
