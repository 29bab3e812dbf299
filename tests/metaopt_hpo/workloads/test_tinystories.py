"""TinyStories: separators, windows, the model, and files that are something else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt_hpo.workloads import WorkloadError
from metaopt_hpo.workloads.llama import LlamaShape, angles, rotated
from metaopt_hpo.workloads.tinystories import SEPARATOR, TinyStories, stories, windows


def test_the_default_has_15_million_parameters() -> None:
    job = TinyStories()
    assert job.size == pytest.approx(14.6e6, rel=0.01)
    assert sum(p.numel() for p in job.model(0).parameters()) - job.size == 256 * 448
    assert job.flops_per_token == pytest.approx(6 * job.size, rel=0.25)


@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.translate(None, b"\0<")), min_size=1, max_size=8),
    st.integers(1, 60),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_windows_are_pieces_of_the_text_with_separators_as_zero(
    parts: list[bytes], length: int, data: st.DataObject
) -> None:
    raw = b"".join(p + SEPARATOR + b"\n" for p in parts)
    symbols = b"".join(p + b"\0" for p in parts)
    text = np.frombuffer(raw, dtype=np.uint8)
    # where each raw byte lies among the symbols
    place = [i for i, _ in enumerate(symbols) for _ in range(len(SEPARATOR) + 1 if symbols[i] == 0 else 1)]
    start = data.draw(st.integers(0, len(raw) - 1).filter(lambda s: not raw[s - 13 : s].endswith(SEPARATOR)))
    (row,) = windows(text, [start], length)
    endless = symbols * (length // len(symbols) + 2)
    assert bytes(row.numpy()) == endless[place[start] : place[start] + length]


def test_batches_hold_words_and_zeros_but_no_separator(tinystories_folder: Path) -> None:
    train, valid = stories(tinystories_folder)
    rows = windows(train, list(range(0, len(train), 7)), 64)
    assert not any(b"endoftext" in bytes(row.numpy()) for row in rows)
    assert (rows == 0).any()
    assert bytes(windows(valid, [0], 9)[0].numpy()) == b"Once upon"


def test_the_older_files_do_too_and_others_are_named(tmp_path: Path, tinystories_folder: Path) -> None:
    for name in ("train", "valid"):
        text = (tinystories_folder / f"TinyStoriesV2-GPT4-{name}.txt").read_bytes()
        (tmp_path / f"TinyStories-{name}.txt").write_bytes(text)
    assert len(stories(tmp_path)) == 2
    for damage, message in ((b"", "is empty"), (b"just text\n" * 50, "is not a TinyStories text file")):
        folder = tmp_path / f"bad{len(damage)}"
        folder.mkdir()
        for name in ("train", "valid"):
            (folder / f"TinyStories-{name}.txt").write_bytes(damage)
        with pytest.raises(WorkloadError, match=rf"TinyStories-train\.txt {message}"):
            stories(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(WorkloadError, match=r"TinyStoriesV2-GPT4-train\.txt and"):
        stories(tmp_path / "none")


def test_the_model_looks_back_only_and_positions_are_relative() -> None:
    torch.manual_seed(0)
    model = LlamaShape(width=64, layers=2, vocabulary=256)()
    x = torch.randint(256, (2, 20))
    y = x.clone()
    y[:, 12:] = 7
    with torch.no_grad():
        a, b = model(x), model(y)
    torch.testing.assert_close(a[:, :12], b[:, :12])
    assert not torch.allclose(a[:, 12:], b[:, 12:])
    # q at t and k at s meet as a function of t − s alone
    q, k = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 1, 30, 16)
    scores = rotated(q, angles(30, 16, q.device)) @ rotated(k, angles(30, 16, k.device)).mT
    for lag in (0, 3, 11):
        diagonal = scores[0, 0].diagonal(-lag)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        TinyStories(width=144)
    with pytest.raises(ValueError, match="multiple of the context"):
        TinyStories().with_batch(1000)
