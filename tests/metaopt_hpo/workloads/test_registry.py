"""What every workload promises, whichever it is, and how they are found by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metaopt_hpo.strategies import make
from metaopt_hpo.workloads import Scored, Workload, WorkloadError, available_workloads, members, scores, train
from metaopt_hpo.workloads.registry import workload_class

NAMES = sorted(available_workloads())


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Workload:
    """The smallest member of a family."""
    name = request.param
    options: dict[str, dict[str, Any]] = {
        "text-lm": {"context": 16, "sequences": 4},
        "cifar10": {"examples": 20},
        "continual": {"examples": 20, "tasks": 3, "task_steps": 4},
        "imagenet": {"examples": 6, "resolution": 32, "workers": 2},
        "tinystories": {"context": 32, "sequences": 4, "layers": 2, "held_out": 8},
        "tabular": {"examples": 20},
        "regression": {"examples": 20},
    }
    folders = {
        "cifar10": "cifar10",
        "continual": "cifar10",
        "imagenet": "imagenet",
        "tinystories": "tinystories",
    }
    if name in folders:
        options[name]["data"] = str(request.getfixturevalue(f"{folders[name]}_folder"))
    return members(name, [8], **options[name])[0]


every = pytest.mark.parametrize("job", NAMES, indirect=True)


@every
def test_it_is_a_workload_with_a_size_and_a_cost(job: Workload) -> None:
    assert isinstance(job, Workload)
    assert job.name in NAMES
    model = job.model(0)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < job.size <= trainable
    # at least the forward and backward of each matrix entry once; convolutions use theirs many times
    assert job.flops_per_token > 2 * job.size


@every
def test_seed_and_step_decide_everything(job: Workload) -> None:
    torch.manual_seed(1)
    a, b, c = job.model(0), job.model(0), job.model(1)
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(expected, torch.get_rng_state()), "building a model moved the global generator"
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])

    def loss(step: int, seed: int) -> float:
        a.load_state_dict(b.state_dict())
        return job.losses(a, step, seed, 1)[0].item()

    first = loss(3, 0)
    assert first == loss(3, 0)
    assert len({first, loss(4, 0), loss(3, 1)}) == 3


@every
def test_parts_make_up_the_batch(job: Workload) -> None:
    model = job.model(0).eval()  # batch statistics differ between halves and the whole
    (whole,) = job.losses(model, 2, 0, 1)
    halves = job.losses(model, 2, 0, 2)
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), rel=1e-4)
    assert job.losses(model, 2, 0, 2)[0].requires_grad
    with pytest.raises(ValueError, match="cannot be split"):
        job.losses(model, 2, 0, 7)


@every
def test_another_batch_is_the_same_job(job: Workload) -> None:
    other = job.with_batch(2 * job.batch)
    assert (other.batch, other.size) == (2 * job.batch, job.size)


@every
def test_it_is_learned_and_scored(job: Workload) -> None:
    run = train(job, make("constant", lr=1e-2), tokens=40 * job.batch, report_stride=8)
    record = run.record()
    assert record.state == "complete", record.reason
    assert record.loss < record.initial_loss
    found = scores(job, run)
    assert run.model.training
    assert bool(found) == isinstance(job, Scored)
    assert all(-1 <= v <= 1 for v in found.values())


@every
def test_training_in_bfloat16_stays_finite(job: Workload) -> None:
    run = train(job, make("constant", lr=1e-3), tokens=3 * job.batch, dtype=torch.bfloat16)
    assert next(run.model.parameters()).dtype == torch.bfloat16
    assert run.state == "complete"


def test_usual_members_are_of_rising_size() -> None:
    for name in ("text-lm", "cifar10", "continual", "tinystories", "tabular", "regression"):
        sizes = [m.size for m in members(name)]
        assert sizes == sorted(set(sizes))
        assert len(sizes) >= 3


def test_names_widths_and_options_that_are_wrong_are_named() -> None:
    with pytest.raises(WorkloadError, match=r"unknown workload 'cifar'; available: .*cifar10"):
        members("cifar")
    with pytest.raises(ValueError, match="ascending"):
        members("text-lm", [16, 8])
    with pytest.raises(ValueError, match="'tabular' has no option 'data'"):
        members("tabular", [8], data="x")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "text-lm"])
def test_bad_settings_are_refused(name: str) -> None:
    cls = workload_class(name)
    batch = "sequences" if name == "tinystories" else "examples"
    for bad in ({"width": 0}, {"width": 1.5}, {batch: -2}, {batch: 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            cls(**bad)


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("cifar10", "cifar-10-batches-bin"),
        ("continual", "cifar-10-batches-bin"),
        ("imagenet", "imagenet"),
        ("tinystories", "tinystories"),
    ],
)
def test_data_that_are_missing_say_where_they_may_lie(
    name: str, usual: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_HPO_DATA", str(tmp_path))
    (job,) = members(name, [8])
    with pytest.raises(WorkloadError, match=rf"{usual}.*METAOPT_HPO_DATA"):
        job.losses(job.model(0), 0, 0, 1)
    (job,) = members(name, [8], data=str(tmp_path / "elsewhere"))
    with pytest.raises(WorkloadError, match="elsewhere"):
        job.losses(job.model(0), 0, 0, 1)
