"""ImageNet's folders: what is read, how it is cropped, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from metaopt_hpo.workloads import WorkloadError
from metaopt_hpo.workloads.image_folders import centre_box, decode, random_box, read_folders
from metaopt_hpo.workloads.imagenet import ImageNet


def test_classes_are_the_sorted_folders(imagenet_folder: Path) -> None:
    train, val = read_folders(imagenet_folder)
    assert train.classes == ("n01440764", "n01443537", "n02102040")
    assert val.classes == train.classes
    assert (len(train), len(val)) == (18, 9)
    for part in (train, val):
        assert all(
            part.classes[y] == f.parent.name for f, y in zip(part.files, part.labels.tolist(), strict=True)
        )


def test_crops_lie_in_the_image_and_cover_what_they_should() -> None:
    draws = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    shares = []
    for draw in draws:
        left, upper, right, lower = random_box(draw)(400, 300)
        assert 0 <= left < right <= 400 + 1e-6
        assert 0 <= upper < lower <= 300 + 1e-6
        shares.append((right - left) * (lower - upper) / (400 * 300))
    assert 0.07 < min(shares) < 0.15
    assert max(shares) > 0.9
    assert centre_box(400, 300) == (68.75, 18.75, 331.25, 281.25)


def test_decoding_crops_resizes_and_mirrors(imagenet_folder: Path) -> None:
    path = read_folders(imagenet_folder)[0].files[0]
    plain, mirrored = (decode(path, 24, centre_box, m) for m in (False, True))
    assert plain.shape == (3, 24, 24)
    assert plain.dtype == torch.uint8
    assert torch.equal(plain.flip(-1), mirrored)
    assert plain[0].float().mean() > plain[1].float().mean() + 100, "the first class is red"


def test_prefetching_changes_nothing(imagenet_folder: Path) -> None:
    job = ImageNet(width=8, resolution=24, examples=6, data=str(imagenet_folder), workers=2)
    model = job.model(0).eval()
    in_order = [job.losses(model, s, 0, 1)[0].item() for s in range(4)]
    backwards = [job.losses(model, s, 0, 1)[0].item() for s in reversed(range(4))]
    assert in_order == backwards[::-1]


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target / "copy")
    return target / "copy"


def test_other_layouts_and_broken_images_are_named(imagenet_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"train/<class>/\*\.JPEG"):
        read_folders(tmp_path)
    root = copied(imagenet_folder, tmp_path)
    stray = root / "val" / "n00000000"
    stray.mkdir()
    with pytest.raises(WorkloadError, match="n00000000 is a class that train does not have"):
        read_folders(root)
    stray.rmdir()
    loose = root / "val" / "ILSVRC2012_val_00000001.JPEG"
    loose.write_bytes(b"")
    with pytest.raises(WorkloadError, match=r"00000001.*outside a class folder"):
        read_folders(root)
    loose.unlink()
    broken = read_folders(root)[0].files[0]
    broken.write_bytes(broken.read_bytes()[:300])
    job = ImageNet(width=8, resolution=24, examples=18, data=str(root), workers=2)
    with pytest.raises(WorkloadError, match=rf"{broken.name} is not a readable image"):
        job.losses(job.model(0), 0, 0, 1)


def test_resnet18_has_its_published_size_for_a_thousand_classes() -> None:
    from metaopt_hpo.workloads.resnet import ResNetShape
    from metaopt_hpo.workloads.settings import parameter_count

    assert parameter_count(ResNetShape("resnet18", 64, 1000, large=True)) == 11_689_512
