"""Small files in the real layouts of the data sets, and a program as a job."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from metaopt_hpo.comparison.command_objective import CommandObjective
from metaopt_hpo.workloads.jobs import command_job

# the tests are no package: makes the helper module beside it importable
sys.path.insert(0, str(Path(__file__).parent))

PIXELS = 3072


def write_cifar(path: Path, labels: np.ndarray, label_bytes: int = 1, seed: int = 0) -> None:
    """Records of random pixels whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (len(labels), PIXELS)) + 18 * (labels[:, None] % 10)
    coarse = [labels[:, None] // 5] * (label_bytes - 1)
    path.write_bytes(np.concatenate([*coarse, labels[:, None], pixels], axis=1).astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 3):
        write_cifar(folder / f"data_batch_{i}.bin", np.arange(60) % 10, seed=i)
    write_cifar(folder / "test_batch.bin", np.arange(40) % 10, seed=9)
    return folder


@pytest.fixture(scope="session")
def cifar100_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cifar-100-binary"
    folder.mkdir()
    write_cifar(folder / "train.bin", np.arange(200) % 100, label_bytes=2)
    write_cifar(folder / "test.bin", np.arange(100), label_bytes=2, seed=1)
    return folder


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for c, wnid in enumerate(("n01440764", "n01443537", "n02102040")):
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (40 + 3 * i, 56, 3)) + np.eye(3)[c] * 150
                image.fromarray(pixels.astype(np.uint8)).save(folder / f"{wnid}_{i}.JPEG")
    return root


STORY = "Once upon a time there was a little cat named Tom. He liked to play with number {}. The end.\n"


@pytest.fixture(scope="session")
def tinystories_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tinystories")
    for name, first, count in (("train", 0, 60), ("valid", 500, 12)):
        text = "".join(STORY.format(i) + "<|endoftext|>\n" for i in range(first, first + count))
        (folder / f"TinyStoriesV2-GPT4-{name}.txt").write_text(text)
    return folder


@pytest.fixture
def make(tmp_path: Path):
    from programs import HEAD, LINE, SIZES

    def build(body: str, line: str = LINE, **options: object) -> CommandObjective:
        (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(body))
        job = command_job(
            line,
            sizes=SIZES,
            batch=16,
            cwd=tmp_path,
            folder=tmp_path / "jobs",
            **options,  # type: ignore[arg-type]
        )
        return CommandObjective(job)

    return build
