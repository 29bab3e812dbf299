"""The law library: every file loads, says where it is from, and predicts what it can."""

from __future__ import annotations

import math

import pytest

from metaopt_hpo.scaling import library


@pytest.mark.parametrize("name", library.names())
def test_every_law_has_an_origin_and_predicts_or_says_why_not(name: str) -> None:
    entry = library.load(name)
    assert entry.title
    assert entry.source
    assert entry.units
    if isinstance(entry, library.FittedLaw):
        assert entry.licence
        assert float(entry.law.predict(5e8, 5e10).lr) > 0
        assert library.prior(name).to_json() == entry.law.to_json()
        return
    anchor = (1e8, 1e10, 1e-3)
    if entry.lr is not None:
        lr = entry.predict_lr(1e9, 1e11, batch=1e6, anchor=anchor)
        assert 1e-6 < lr < 1
    else:
        with pytest.raises(library.LibraryError, match="nothing of lr"):
            entry.predict_lr(1e9, 1e11)
    with pytest.raises(library.LibraryError, match="no intervals"):
        library.prior(name)


def test_published_numbers() -> None:
    step = library.load("step-law")
    assert isinstance(step, library.PublishedLaw)
    assert step.complete
    assert step.predict_lr(1e9, 1e11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert step.predict_batch(1e9, 1e11) == pytest.approx(0.58 * 1e11**0.571)
    deepseek = library.load("deepseek")
    assert isinstance(deepseek, library.PublishedLaw)
    assert deepseek.predict_lr(1e9, 1e11) == pytest.approx(0.3118 * (6e20) ** -0.125)
    chinchilla = library.load("chinchilla")
    assert isinstance(chinchilla, library.PublishedLaw)
    assert chinchilla.predict_loss(7e10, 1.4e12) == pytest.approx(
        1.69 + 406.4 * 7e10**-0.34 + 410.7 * 1.4e12**-0.28
    )


def test_exponents_alone_need_an_anchor() -> None:
    mup = library.load("mup-adam")
    assert isinstance(mup, library.PublishedLaw)
    assert not mup.complete
    with pytest.raises(library.LibraryError, match="anchor"):
        mup.predict_lr(4e9, 1e11)
    assert mup.predict_lr(4e9, 1e11, anchor=(1e9, 1e11, 0.01)) == pytest.approx(0.005)
    with pytest.raises(library.LibraryError, match="nothing of the batch"):
        mup.predict_batch(1e9, 1e11)
    with pytest.raises(library.LibraryError, match="no law 'x'"):
        library.load("x")
    horizon = library.load("completed-p")
    assert isinstance(horizon, library.PublishedLaw)
    lr = horizon.predict_lr(1e9, 4e11, batch=1e6, anchor=(1e9, 1e11, 0.01))
    assert lr == pytest.approx(0.01 / math.sqrt(4))
