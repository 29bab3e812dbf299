"""text-lm: what it promises about size, data, cost and determinism."""

import pytest
import torch

from metaopt_hpo.strategies import make
from metaopt_hpo.workloads import TextLM, Workload, train
from metaopt_hpo.workloads.text_lm import corpus

SMALL = TextLM(width=16, context=16, sequences=4)


@pytest.mark.parametrize("width", [8, 24, 64])
def test_size_counts_everything_but_embeddings_and_output(width: int) -> None:
    workload = TextLM(width=width)
    counted = sum(
        p.numel()
        for n, p in workload.model(0).named_parameters()
        if n.split(".")[0] not in ("embedding", "positions", "head")
    )
    assert workload.size == counted
    assert isinstance(workload, Workload)


def test_held_out_speeches_are_not_trained_on() -> None:
    training, held_out = (bytes(part.numpy()) for part in corpus())
    assert 0.05 < len(held_out) / len(training) < 0.2
    for start in range(0, len(held_out) - 200, len(held_out) // 20):
        assert held_out[start : start + 200] not in training


def test_same_seed_same_run_and_other_seed_another() -> None:
    def loss(seed: int) -> float:
        return train(SMALL, make("wsd", lr=1e-2), tokens=640, seed=seed).loss

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)


def test_building_a_model_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(3)
    a = torch.rand(1)
    torch.manual_seed(3)
    SMALL.model(0)
    assert torch.equal(a, torch.rand(1))


def test_halves_average_to_the_whole_batch_and_steps_differ() -> None:
    model = SMALL.model(0)
    (whole,) = SMALL.losses(model, 5, 0, 1)
    halves = SMALL.losses(model, 5, 0, 2)
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), rel=1e-5)
    assert SMALL.losses(model, 6, 0, 1)[0] != whole


def test_flops_are_six_times_the_matrix_parameters_and_attention() -> None:
    w = TextLM(width=64)
    matrices = 12 * 64**2 * 2 + 64 * 256
    assert 6 * matrices <= w.flops_per_token <= 6 * matrices + 2 * 14 * 64 * 64


def test_it_learns_and_records() -> None:
    r = train(SMALL, make("metaoptimize"), tokens=64 * 150, report_stride=4).record()
    assert r.state == "complete"
    assert r.loss < 0.8 * r.initial_loss
    assert r.curve is not None
    assert r.workload == "text-lm"
    assert r.found_lr > 0


def test_divergence_is_a_record_not_an_exception() -> None:
    r = train(SMALL, make("constant", base="sgd", lr=1e4, max_grad_norm=None), tokens=64 * 100).record()
    assert r.state == "diverged"
    assert r.reason
    assert r.cost < SMALL.flops_per_token * 64 * 100


def test_other_batches_and_bad_settings() -> None:
    assert SMALL.with_batch(128).batch == 128
    for bad in ({"width": 12}, {"width": 0}, {"layers": -1}, {"sequences": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TextLM(**bad)
    with pytest.raises(ValueError, match="multiple of the context"):
        SMALL.with_batch(100)
