"""CIFAR files, augmentation, networks, and the continual stream."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from metaopt_hpo import MetaOptimize
from metaopt_hpo.strategies import make
from metaopt_hpo.workloads import WorkloadError, train
from metaopt_hpo.workloads.cifar10 import Cifar10
from metaopt_hpo.workloads.continual import Continual
from metaopt_hpo.workloads.resnet import six_blocks
from metaopt_hpo.workloads.sampling import batch_indices
from metaopt_hpo.workloads.vision_data import augmented, read_cifar

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "cifar-10-batches-bin"


def test_records_are_read_in_order_from_every_batch(cifar10_folder: Path) -> None:
    data = read_cifar(cifar10_folder, "cifar10")
    assert (len(data.train), len(data.test), data.classes) == (120, 40, 10)
    raw = np.fromfile(cifar10_folder / "data_batch_2.bin", dtype=np.uint8).reshape(60, 3073)
    assert data.train.labels[60:].tolist() == raw[:, 0].tolist()
    red, green, blue = (raw[7, 1 + 1024 * i : 1 + 1024 * (i + 1)].reshape(32, 32) for i in range(3))
    assert np.array_equal(data.train.pixels[67].numpy(), np.stack([red, green, blue]))


def test_cifar100_has_a_coarse_label_first(cifar100_folder: Path) -> None:
    data = read_cifar(cifar100_folder, "cifar100")
    assert data.classes == 100
    assert data.test.labels.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], r"data_batch_1\.bin is truncated.*3073"),
        (lambda b: b"", r"data_batch_1\.bin is truncated"),
        (lambda b: b"\x80\x04pickled" * 3073, r"data_batch_1\.bin is no CIFAR file: record 0 has label 128"),
    ],
)
def test_damaged_and_foreign_files_are_named(
    tmp_path: Path, cifar10_folder: Path, damage, message: str
) -> None:  # type: ignore[no-untyped-def]
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes((cifar10_folder / name).read_bytes())
    good = (tmp_path / "data_batch_1.bin").read_bytes()
    (tmp_path / "data_batch_1.bin").write_bytes(damage(good))
    with pytest.raises(WorkloadError, match=message):
        read_cifar(tmp_path, "cifar10")


def test_missing_files_are_named(tmp_path: Path, cifar10_folder: Path) -> None:
    with pytest.raises(WorkloadError, match="binary version"):
        read_cifar(tmp_path, "cifar10")
    (tmp_path / "data_batch_1.bin").write_bytes((cifar10_folder / "data_batch_1.bin").read_bytes())
    with pytest.raises(WorkloadError, match=r"test_batch\.bin"):
        read_cifar(tmp_path, "cifar10")


def test_epochs_visit_every_example_once_and_differ() -> None:
    steps = [batch_indices(10, 4, step, seed=1) for step in range(10)]
    stream = torch.cat(steps).view(4, 10)
    for epoch in stream:
        assert sorted(epoch.tolist()) == list(range(10))
    assert len({tuple(e.tolist()) for e in stream}) == 4
    assert torch.equal(batch_indices(10, 4, 7, seed=1), steps[7])
    assert sorted(batch_indices(3, 7, 0, seed=0).tolist()) == sorted(
        [0, 1, 2] * 2 + [batch_indices(3, 7, 0, 0)[-1].item()]
    )


def test_augmentation_shifts_and_mirrors_whole_images() -> None:
    """Against the definition, image by image: some window of the padded image, mirrored or not."""
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8).repeat(20, 1, 1, 1) + 1
    out = augmented(pixels, torch.Generator().manual_seed(0))
    assert out.shape == pixels.shape
    assert torch.equal(out, augmented(pixels, torch.Generator().manual_seed(0)))
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    mirrored = 0
    for image, source in zip(out, padded, strict=True):
        windows = [source[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
        plain = any(torch.equal(image, w) for w in windows)
        flipped = any(torch.equal(image, w.flip(-1)) for w in windows)
        assert plain or flipped
        mirrored += flipped and not plain
    assert 8 < mirrored < 32


def test_resnet18_has_its_published_size() -> None:
    job = Cifar10.resnet18()
    assert job.size == 11_173_962
    # 0.56 billion multiply-adds forward, two FLOPs each, three passes; no gradient for the pixels
    assert job.flops_per_token == pytest.approx(6 * 0.556e9, rel=0.01)
    assert Cifar10(width=32).size > 3 * Cifar10(width=16).size


def test_six_blocks_of_resnet18() -> None:
    model = Cifar10(network="resnet18", width=8).model(0)
    opt = MetaOptimize(model.named_parameters(), blocks=six_blocks)
    assert opt.block_names() == ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
    assert six_blocks("network.layer3.0.conv1.weight") == "layer3"
    with pytest.raises(ValueError, match=r"embedding\.weight"):
        six_blocks("embedding.weight")


def test_held_out_loss_and_accuracy_agree_with_the_definition(cifar10_folder: Path) -> None:
    job = Cifar10(width=8, data=str(cifar10_folder), held_out=15)
    model = job.model(0).eval()
    test = read_cifar(cifar10_folder, "cifar10").test
    whole = replace(job, held_out=len(test))
    loss, accuracy = whole.held_out_loss(model), whole.scores(model)["accuracy"]
    with torch.no_grad():
        logits = torch.cat([job_logits(model, test.pixels[i : i + 1]) for i in range(len(test))])
    expected = torch.nn.functional.cross_entropy(logits, test.labels)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == test.labels).double().mean().item())
    assert job.held_out_loss(model) != loss, "held_out=15 must use fewer images"


def job_logits(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    from metaopt_hpo.workloads.vision_data import MEAN, STD

    x = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    out: torch.Tensor = model(x)
    return out


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL.name} beside the repository")
def test_the_real_files_are_read_and_learned() -> None:
    job = Cifar10(width=8, examples=64, data=str(REAL), held_out=400)
    data = job.images()
    assert len(data.train) == 10_000
    assert torch.bincount(data.train.labels).min() > 800
    run = train(job, make("cosine", lr=1e-2), tokens=64 * 40, report_stride=16)
    assert run.loss < 0.95 * run.initial_loss


STREAM = {"width": 8, "examples": 20, "tasks": 3, "task_steps": 5}


def test_tasks_follow_each_other_with_labels_permuted(cifar10_folder: Path) -> None:
    job = Continual(**STREAM, data=str(cifar10_folder))  # type: ignore[arg-type]
    assert [job.task(s) for s in (0, 4, 5, 14, 15, 100)] == [0, 0, 1, 2, 2, 2]
    maps = [job.permutation(t, 0) for t in range(3)]
    assert maps[0].tolist() == list(range(10))
    assert all(sorted(m.tolist()) == list(range(10)) for m in maps)
    assert all(not torch.equal(a, b) for a, b in pairwise(maps))
    assert not torch.equal(job.permutation(1, 0), job.permutation(1, 1))
    assert job.stream == 3 * 5 * 20


def test_online_counts_are_those_of_the_predictions_and_survive_a_checkpoint(
    cifar10_folder: Path, tmp_path: Path
) -> None:
    job = Continual(**STREAM, data=str(cifar10_folder))  # type: ignore[arg-type]
    model = job.model(0)
    means = []
    for step in range(7):
        means += [float(part.detach()) for part in job.losses(model, step, 0, 2)]
    assert job.held_out_loss(model) == pytest.approx(sum(means) / len(means), rel=1e-6)
    assert model.seen.tolist() == [100, 40, 0]
    found = job.scores(model)
    assert set(found) == {"cumulative_accuracy", "accuracy_task_0", "accuracy_task_1"}
    assert found["cumulative_accuracy"] == pytest.approx(int(model.correct.sum()) / 140)
    again = job.model(1)
    again.load_state_dict(model.state_dict())
    assert job.scores(again) == found
    assert again.to(torch.bfloat16).loss_sum.dtype == torch.float64
    assert math.isnan(job.scores(job.model(0))["cumulative_accuracy"])


def test_a_stream_that_resumes_counts_as_if_never_stopped(cifar10_folder: Path, tmp_path: Path) -> None:
    job = Continual(**STREAM, data=str(cifar10_folder))  # type: ignore[arg-type]
    options = {"tokens": job.stream, "checkpoint_every": 1}
    whole = train(job, make("constant", lr=1e-3), **options)  # type: ignore[arg-type]

    class Killed(Exception):
        pass

    calls = 0

    class Fragile(Continual):
        def losses(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == 9:
                raise Killed
            return super().losses(*args, **kwargs)

    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(
            Fragile(**STREAM, data=str(cifar10_folder)), make("constant", lr=1e-3), checkpoint=path, **options
        )  # type: ignore[arg-type]
    resumed = train(job, make("constant", lr=1e-3), checkpoint=path, **options)  # type: ignore[arg-type]
    assert resumed.loss == whole.loss
    assert job.scores(resumed.model) == job.scores(whole.model)


def test_the_recommended_options_are_options(cifar100_folder: Path) -> None:
    job = Continual(**STREAM, dataset="cifar100", data=str(cifar100_folder))  # type: ignore[arg-type]
    strategy = make("metaoptimize", **Continual.recommended["metaoptimize"])
    run = train(job, strategy, tokens=job.stream, report_stride=8)
    assert run.state == "complete"
    assert strategy.options()["gamma"] == 0.999
    with pytest.raises(ValueError, match="dataset must be one of cifar10, cifar100"):
        Continual(dataset="mnist")
