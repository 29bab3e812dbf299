"""A run that is saved, loaded in a new process and continued is bitwise the run that never stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaopt_hpo.optim import MetaOptimize

SCRIPT = """
import sys
import torch
from metaopt_hpo.optim import MetaOptimize

torch.set_num_threads(2)

def build(base, meta, blocks, dtype, kernel):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    model = model.to(getattr(torch, dtype))
    opt = MetaOptimize(model.named_parameters(), lr=1e-2, base=base, meta=meta, meta_lr=0.05, blocks=blocks,
                       weight_decay=0.1, gamma=0.99, compile=kernel)
    return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)

def train(model, opt, schedule, first, last):
    for step in range(first, last):
        gen = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=gen).to(next(model.parameters()).dtype)
        opt.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        opt.step()
        schedule.step()

if __name__ == "__main__":
    for line in sys.stdin.read().splitlines():
        path, *spec = line.split()
        model, opt, schedule = build(*spec)
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        schedule.load_state_dict(saved["schedule"])
        train(model, opt, schedule, 7, 15)
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, path + ".out")
"""

SPECS = [
    "sgd sgd scalar float32 auto",
    "sgdm rmsprop layer float32 auto",
    "rmsprop lion tensor float32 auto",
    "adamw adam weight float32 auto",
    "lion adam layer bfloat16 auto",
    "adamw adam scalar bfloat16 eager",
    "adamw adam scalar float64 eager",
    "adamw adam layer float32 auto",
]


def test_resumed_runs_are_bitwise_the_same(tmp_path: Path) -> None:
    scope: dict[str, object] = {"__name__": "script"}
    exec(SCRIPT, scope)
    script = tmp_path / "resume.py"
    script.write_text(SCRIPT)
    expected, lines = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for i, spec in enumerate(SPECS):
        model, opt, schedule = scope["build"](*spec.split())  # type: ignore[operator]
        scope["train"](model, opt, schedule, 0, 7)  # type: ignore[operator]
        saved = {"model": model.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict()}
        torch.save(saved, tmp_path / f"{i}.pt")
        lines.append(f"{tmp_path / f'{i}.pt'} {spec}")
        scope["train"](model, opt, schedule, 7, 15)  # type: ignore[operator]
        expected.append((model.state_dict(), opt.state_dict()))
    torch.set_num_threads(threads)
    subprocess.run([sys.executable, str(script)], input="\n".join(lines), text=True, check=True, timeout=300)
    for i, (model_state, opt_state) in enumerate(expected):
        got = torch.load(tmp_path / f"{i}.pt.out", weights_only=True)
        for name, value in model_state.items():
            assert torch.equal(got["model"][name], value), SPECS[i]
        for key, state in opt_state["state"].items():
            for name, value in state.items():
                assert torch.equal(got["opt"]["state"][key][name], value), (SPECS[i], name)
                assert got["opt"]["state"][key][name].dtype == value.dtype
        for mine, other in zip(got["opt"]["param_groups"], opt_state["param_groups"], strict=True):
            assert mine.keys() == other.keys()
            for name, value in other.items():
                same = (
                    torch.equal(mine[name], value) if isinstance(value, torch.Tensor) else mine[name] == value
                )
                assert same, (SPECS[i], name)


def model_and_opt(**options) -> tuple[torch.nn.Module, MetaOptimize]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    opt = MetaOptimize(model.named_parameters(), lr=1e-2, **options)
    model(torch.ones(4, 3)).square().mean().backward()
    opt.step()
    return model, opt


def test_a_newer_state_is_refused_and_a_foreign_one_named() -> None:
    _, opt = model_and_opt()
    state = opt.state_dict()
    state["param_groups"][0]["state_version"] = 999
    with pytest.raises(ValueError, match="state_version 999"):
        opt.load_state_dict(state)
    foreign = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="not one of MetaOptimize"):
        opt.load_state_dict(foreign.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"meta": "sgd"}, "other rules"), ({"base": "sgd"}, "other rules"), ({"blocks": "tensor"}, "blocks")],
)
def test_a_state_of_other_rules_or_blocks_is_refused(options, message: str) -> None:
    _, opt = model_and_opt()
    _, other = model_and_opt(**options)
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(other.state_dict())


def test_a_refused_state_leaves_the_optimizer_as_it_was() -> None:
    model, opt = model_and_opt()
    _, other = model_and_opt(base="sgd")
    h = opt.state[model.weight]["h"].clone()
    with pytest.raises(ValueError, match="other rules"):
        opt.load_state_dict(other.state_dict())
    assert torch.equal(opt.state[model.weight]["h"], h)


def test_loading_into_another_dtype_keeps_float32_state() -> None:
    model, opt = model_and_opt()
    half = torch.nn.Linear(3, 2).bfloat16()
    other = MetaOptimize(half.named_parameters(), lr=1e-2)
    other.load_state_dict(opt.state_dict())
    assert torch.equal(other.state[half.weight]["h"], opt.state[model.weight]["h"])
    assert other.state[half.weight]["m"].dtype == torch.float32
    assert torch.equal(other.step_sizes(), opt.step_sizes())


def test_a_state_of_an_older_version_loads_and_is_saved_as_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt_hpo.optim import shared_state

    _, old = model_and_opt()
    state = old.state_dict()
    monkeypatch.setattr(shared_state, "STATE_VERSION", shared_state.STATE_VERSION + 1)
    _, opt = model_and_opt()
    opt.load_state_dict(state)
    assert opt.state_dict()["param_groups"][0]["state_version"] == shared_state.STATE_VERSION
    assert torch.equal(opt.step_sizes(), old.step_sizes())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_saved_on_one_device_goes_on_on_another() -> None:
    model, opt = model_and_opt()
    moved = torch.nn.Linear(3, 2).cuda()
    moved.load_state_dict(model.state_dict())
    other = MetaOptimize(moved.named_parameters(), lr=1e-2)
    other.load_state_dict(opt.state_dict())
    for m, o, device in ((model, opt, "cpu"), (moved, other, "cuda")):
        o.zero_grad()
        m(torch.ones(4, 3, device=device)).square().mean().backward()
        o.step()
    assert other.step_sizes().device.type == "cuda"
    assert other.step_sizes().cpu() == pytest.approx(opt.step_sizes(), rel=1e-5)
    assert torch.allclose(moved.weight.cpu(), model.weight, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "eager"])
@pytest.mark.parametrize("blocks", ["scalar", "weight", "layer"])
def test_the_saved_start_holds_whatever_the_new_optimizer_was_made_with(blocks: str, kernel: str) -> None:
    """A group's lr multiplies against the lr of the run that was saved, not against the one given at the resume."""

    def build(lr: float, meta_lr: float) -> tuple[torch.nn.Module, MetaOptimize]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        groups = [
            {"params": list(model[0].named_parameters(prefix="0"))},
            {"params": list(model[2].named_parameters(prefix="2")), "lr": 3e-2},
        ]
        return model, MetaOptimize(groups, lr=lr, meta_lr=meta_lr, blocks=blocks, compile=kernel)

    def train(model: torch.nn.Module, opt: MetaOptimize, first: int, last: int) -> None:
        for step in range(first, last):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            opt.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
            opt.step()

    model, opt = build(1e-2, 0.05)
    train(model, opt, 0, 5)
    twin, resumed = build(1e-4, 0.5)
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(opt.state_dict())
    torch.testing.assert_close(resumed.param_groups[1]["step_size"], opt.param_groups[1]["step_size"])
    train(model, opt, 5, 10)
    train(twin, resumed, 5, 10)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    broken = opt.state_dict()
    broken["param_groups"][0]["start_lr"] = 0.0
    with pytest.raises(ValueError, match="start_lr"):
        resumed.load_state_dict(broken)
