"""MetaOptimize as a torch optimizer: groups, schedulers, knobs, odd gradients, wrong arguments."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from metaopt_hpo.optim import SGD, AdamW, MetaOptimize


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(dtype)


def advance(model: nn.Module, opt: torch.optim.Optimizer, steps: int = 3, seed: int = 0) -> None:
    gen = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 4, generator=gen).to(next(model.parameters()).dtype)
        opt.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        opt.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=5),
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10),
        lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=10, cycle_momentum=False),
    ],
)
def test_schedulers_multiply_the_step_size(make) -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, base="sgd", meta_lr=0.1)
    schedule = make(opt)
    for _ in range(6):
        before, alpha = weights(model), opt.step_sizes()
        factor = opt.param_groups[0]["lr"] / 1e-2
        advance(model, opt, 1)
        for p, w in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach() - w, -alpha * factor * p.grad, rtol=1e-4, atol=1e-7)
        expected = opt.step_sizes()[0] * opt.param_groups[0]["lr"] / 1e-2
        schedule.step()
        torch.testing.assert_close(opt.param_groups[0]["step_size"], expected)


def test_a_group_lr_and_decay_are_its_own() -> None:
    model = net()
    groups = [
        {"params": [model[0].weight], "lr": 5e-3, "weight_decay": 0.0},
        {"params": [model[2].weight], "weight_decay": 0.5},
        {"params": [model[2].bias], "lr": 0.0},
    ]
    opt = MetaOptimize(groups, lr=1e-2, base=SGD(), meta="sgd", meta_lr=0.1)
    before = [p.detach().clone() for g in opt.param_groups for p in g["params"]]
    advance(model, opt, 1)
    a, b, c = (p for g in opt.param_groups for p in g["params"])
    torch.testing.assert_close(a.detach(), before[0] - 5e-3 * a.grad)
    torch.testing.assert_close(b.detach(), before[1] - 1e-2 * (b.grad + 0.5 * before[1]))
    assert torch.equal(c.detach(), before[2])
    assert [round(float(g["step_size"]), 6) for g in opt.param_groups] == [0.005, 0.01, 0.0]


def test_step_sizes_can_be_set_scaled_and_frozen() -> None:
    model = net()
    opt = MetaOptimize(model.named_parameters(), lr=1e-3, meta_lr=0.1, blocks="layer")
    advance(model, opt)
    found = opt.step_sizes()
    opt.scale_step_size(0.5)
    torch.testing.assert_close(opt.step_sizes(), found / 2)
    opt.set_step_size(torch.tensor([1e-3, 2e-3]))
    torch.testing.assert_close(opt.step_sizes(), torch.tensor([1e-3, 2e-3]))
    torch.testing.assert_close(opt.param_groups[0]["step_size"], torch.tensor([1e-3, 2e-3]))
    opt.meta_lr = 0.0
    frozen = opt.step_sizes()
    advance(model, opt)
    assert torch.equal(opt.step_sizes(), frozen)
    opt.meta_lr = 0.1
    advance(model, opt)
    assert not torch.equal(opt.step_sizes(), frozen)
    for bad in [0.0, -1.0, math.nan, math.inf]:
        with pytest.raises(ValueError, match="alpha"):
            opt.set_step_size(bad)
        with pytest.raises(ValueError, match="factor"):
            opt.scale_step_size(bad)
    with pytest.raises(ValueError, match="one a block, 2"):
        opt.set_step_size(torch.ones(3))
    with pytest.raises(ValueError, match="meta_lr"):
        opt.meta_lr = -1.0


def test_names_step_sizes_and_traces_agree() -> None:
    model = net()
    for blocks, names in {
        "scalar": ("all",),
        "layer": ("0", "2"),
        "tensor": ("0.weight", "0.bias", "2.weight", "2.bias"),
    }.items():
        opt = MetaOptimize(model.named_parameters(), blocks=blocks)
        advance(model, opt)
        assert opt.block_names() == names
        assert opt.step_sizes().shape == (len(names),)
        h = opt.traces()
        assert h.shape == (sum(p.numel() for p in model.parameters()), len(names))
        flat = torch.cat([opt.state[p]["h"].reshape(-1) for p in model.parameters()])
        assert torch.equal(h.sum(1), flat)
    opt = MetaOptimize(model.named_parameters(), blocks="weight")
    advance(model, opt)
    assert opt.block_names()[33] == "0.bias[1]"
    flat = torch.cat([opt.state[p]["h"].reshape(-1) for p in model.parameters()])
    assert torch.equal(opt.traces(), torch.diag(flat))


def test_a_parameter_without_gradient_is_left_alone() -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, weight_decay=0.1)
    advance(model, opt)
    for p in model[0].parameters():
        p.requires_grad_(False)
        p.grad = None
    frozen = weights(model[0])
    h = opt.state[model[0].weight]["h"].clone()
    moved = weights(model[2])
    advance(model, opt)
    assert equal(weights(model[0]), frozen)
    assert torch.equal(opt.state[model[0].weight]["h"], h)
    assert float(opt.state[model[0].weight]["step"]) == 3
    assert float(opt.state[model[2].weight]["step"]) == 6
    assert not equal(weights(model[2]), moved)


def test_a_step_without_any_gradient_changes_no_weight() -> None:
    model = net()
    opt = MetaOptimize(model.parameters())
    before = weights(model)
    opt.step()
    assert equal(weights(model), before)


def test_a_late_parameter_counts_its_own_steps() -> None:
    """As in torch's AdamW: bias correction of a parameter that joins late starts at 1."""
    model, twin = net(torch.float64), net(torch.float64)
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.0)
    ref = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    for m, o in [(model, opt), (twin, ref)]:
        m[0].requires_grad_(False)
        advance(m, o)
        m[0].requires_grad_(True)
        advance(m, o)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kernel", ["eager", "auto"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_z_skips_beta_and_is_counted(bad: float, kernel: str) -> None:
    model, twin = net(), net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1, compile=kernel)
    ref = MetaOptimize(twin.parameters(), lr=1e-2, meta_lr=0.1, compile=kernel)
    advance(model, opt)
    advance(twin, ref)
    before = opt.step_sizes()
    meta_state = [opt.param_groups[0][k].clone() for k in ("meta_m", "meta_v", "meta_step")]
    for m in (model, twin):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
    model[0].weight.grad[0, 0] = bad
    opt.step()
    ref.step()
    assert opt.skipped == 1
    assert torch.equal(opt.step_sizes(), before)
    for k, old in zip(("meta_m", "meta_v", "meta_step"), meta_state, strict=True):
        assert torch.equal(opt.param_groups[0][k], old)
    # The weights do what the base optimizer would: every other weight as without the bad entry, the bad one
    # not finite.
    same = model[0].weight.detach() == twin[0].weight.detach()
    assert not same[0, 0]
    assert int((~same).sum()) == 1
    assert equal(weights(model)[1:], weights(twin)[1:])


def test_only_the_block_that_is_hit_is_skipped() -> None:
    model = net()
    opt = MetaOptimize(model.named_parameters(), lr=1e-2, meta_lr=0.1, blocks="tensor")
    advance(model, opt)
    before = opt.step_sizes()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].bias.grad[0] = math.inf
    opt.step()
    moved = opt.step_sizes() != before
    assert moved.tolist() == [True, False, True, True]
    assert opt.skipped == 1


@pytest.mark.parametrize("blocks", ["scalar", "weight"])
def test_clipping_is_torchs_clipping_and_leaves_the_gradient_alone(blocks: str) -> None:
    model, twin = net(), net()
    options = {"lr": 1e-2, "base": "sgd", "meta": "sgd", "meta_lr": 0.1, "blocks": blocks}
    opt = MetaOptimize(model.parameters(), max_grad_norm=0.3, **options)
    ref = MetaOptimize(twin.parameters(), **options)
    for seed in range(4):
        gen = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 4, generator=gen)
        for m in (model, twin):
            m.zero_grad()
            m(x).square().mean().backward()
        raw = [p.grad.clone() for p in model.parameters()]
        opt.step()
        assert equal([p.grad for p in model.parameters()], raw)
        nn.utils.clip_grad_norm_(twin.parameters(), 0.3)
        ref.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-7)


def test_bounds_hold_and_are_on_for_weight_blocks() -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta="sgd", meta_lr=1e6, beta_bounds=(-6.0, -4.0))
    for _ in range(5):
        advance(model, opt, 1)
        assert bool((opt.param_groups[0]["beta"] >= -6).all() and (opt.param_groups[0]["beta"] <= -4).all())
    opt = MetaOptimize(net().parameters(), lr=1e-2, meta_lr=100.0, blocks="weight")
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=100.0, blocks="weight")
    advance(model, opt, 5)
    assert float(opt.step_sizes().max()) <= 0.1 * (1 + 1e-6)
    assert float(opt.step_sizes().min()) >= math.exp(-15) * (1 - 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", ["eager", "auto"])
def test_low_precision_weights_keep_float32_state(dtype: torch.dtype, kernel: str) -> None:
    """State is the intended run in float32: it equals that of a float32 model given the same gradients."""
    model, twin = net().to(dtype), net().to(dtype).float()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1, compile=kernel)
    ref = MetaOptimize(twin.parameters(), lr=1e-2, meta_lr=0.1, compile=kernel)
    torch.manual_seed(0)
    for _ in range(4):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.float()
        opt.step()
        ref.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert opt.state[p]["h"].dtype == torch.float32
        for name in ("m", "v", "h"):
            torch.testing.assert_close(opt.state[p][name], ref.state[q][name], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(opt.step_sizes(), ref.step_sizes())


def test_a_group_added_later_trains_and_keeps_what_was_learned() -> None:
    model = net()
    opt = MetaOptimize([{"params": list(model[2].named_parameters())}], lr=1e-2, meta_lr=0.1, blocks="tensor")
    advance(model, opt)
    learned = opt.step_sizes()
    opt.add_param_group({"params": list(model[0].named_parameters("first"))})
    assert torch.equal(opt.step_sizes()[:2], learned)
    torch.testing.assert_close(opt.step_sizes()[2:], torch.full((2,), 1e-2))
    assert opt.block_names()[2:] == ("first.weight", "first.bias")
    before = weights(model[0])
    advance(model, opt)
    assert not equal(weights(model[0]), before)


def test_a_deep_copy_goes_on_alike() -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.1)
    advance(model, opt)
    twin, other = copy.deepcopy((model, opt))
    advance(model, opt, seed=5)
    advance(twin, other, seed=5)
    assert equal(weights(model), weights(twin))
    assert torch.equal(opt.step_sizes(), other.step_sizes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"base": "adam2"}, "base='adam2'.*sgd, sgdm, rmsprop, adamw, lion"),
        ({"meta": "adamw"}, "meta='adamw'.*sgd, adam, rmsprop, lion"),
        ({"meta_lr": -1e-3}, "meta_lr"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"blocks": "rows"}, "blocks='rows'"),
        ({"blocks": "layer"}, "named_parameters"),
        ({"blocks": lambda name: name}, "named_parameters"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"trace": "full"}, "trace='full'"),
        ({"beta_bounds": (0.0, -1.0)}, "beta_bounds"),
        ({"beta_bounds": (0.0, 1.0)}, "does not contain"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"compile": "fast"}, "compile='fast'"),
    ],
)
def test_wrong_arguments_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaOptimize(net().parameters(), **options)


def test_wrong_rules_are_named() -> None:
    with pytest.raises(ValueError, match=r"betas\[1\]=1.0"):
        AdamW(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="eps=-1"):
        AdamW(eps=-1.0)


def test_a_block_function_must_return_a_name() -> None:
    with pytest.raises(ValueError, match=r"returned 3 for '0.weight'"):
        MetaOptimize(net().named_parameters(), blocks=lambda name: 3)


def test_complex_and_sparse_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'c' is complex"):
        MetaOptimize([("c", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))])
    emb = nn.Embedding(10, 3, sparse=True)
    opt = MetaOptimize(emb.named_parameters())
    emb(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="'weight' has a sparse gradient"):
        opt.step()


def test_a_plain_closure_works() -> None:
    model = net()
    opt = MetaOptimize(model.parameters(), lr=1e-2)
    x = torch.randn(8, 4)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    losses = [opt.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]
