"""A damaged law is refused in one sentence, or answers with finite numbers: never another exception, never NaN."""

import copy
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.scaling import Law, library
from metaopt_hpo.scaling.law_schema import LawPart

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -1e308, 1e-320, 10**400, "x", "", [], {}, [None], [[]], {"a": 1}, [0.5] * 7, float("nan"),
    float("inf"),
)  # fmt: skip

Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    whole = json.loads(library.prior("fitted-step-law").to_json())
    whole.pop("checksum")  # or nothing but the checksum would be tested
    for name in ("a", "b", "slope", "floor"):
        whole["draws"][name] = whole["draws"][name][:3]
    return dict(whole)


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield (*at, key)
        yield from places(child, (*at, key))


def edited(data: dict[str, Any], place: Place, change: Callable[[Any, str | int], None]) -> str:
    out = copy.deepcopy(data)
    inner: Any = out
    for key in place[:-1]:
        inner = inner[key]
    change(inner, place[-1])
    return json.dumps(out)


def one_sentence(text: str, size: float = 1e9, tokens: float = 2e10) -> bool:
    """Whether the law was refused in a sentence; fails where it neither was nor gave finite numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            law = Law.from_json(text)
            found = law.predict(size=size, tokens=tokens)
            law.verdict(size=size, tokens=tokens, lr=1e-3, batch=1e6, incumbent=2.0)
            law.describe()
        except MetaOptError as error:
            return 0 < len(str(error)) < 500 and "\n" not in str(error)
    assert all(map(math.isfinite, (*numbers(found.lr), *numbers(found.batch), *numbers(found.loss))))
    return False


def numbers(estimate: Any) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_every_place_with_junk_in_it(data: dict[str, Any]) -> None:
    draw = random.Random(2)
    found = list(places(data))
    # all of the upper levels, and a sample of the numbers in the long lists
    shallow = [p for p in found if len(p) <= 3]
    deep = draw.sample([p for p in found if len(p) > 3], 10)
    for place in shallow + deep:
        for junk in draw.sample(JUNK, 6):
            one_sentence(edited(data, place, lambda inner, key, junk=junk: inner.__setitem__(key, junk)))  # type: ignore[misc]
        one_sentence(edited(data, place, lambda inner, key: inner.__delitem__(key)))


def test_a_missing_part_is_refused(data: dict[str, Any]) -> None:
    for name in data:
        if name not in LawPart.model_fields or LawPart.model_fields[name].is_required():
            assert one_sentence(json.dumps({k: v for k, v in data.items() if k != name}))


def test_a_changed_number_does_not_match_the_checksum() -> None:
    whole = json.loads(library.prior("fitted-step-law").to_json())
    whole["surface"]["a"][0] += 1e-9
    with pytest.raises(MetaOptError, match="does not match its checksum"):
        Law.from_json(json.dumps(whole))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' + "[" * 100_000,
        '{"a":' * 100_000,
        "{",
        '{"format": 1}',
        '{"a": 1e999}',
        '{"a": NaN}',
        "{\x00}",
    ],
)
def test_texts_that_are_no_law(text: str) -> None:
    assert one_sentence(text)


def test_files_that_are_no_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt_hpo.scaling import storage

    compressed = tmp_path / "law.json"
    compressed.write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(256)))
    huge = tmp_path / "huge.json"
    huge.write_text(" " * 2000)
    monkeypatch.setattr(storage, "MAX_BYTES", 1000)
    for file in (compressed, huge, tmp_path, tmp_path / "none", "\x00", "x" * 10_000):
        with pytest.raises(MetaOptError):
            Law.from_json(file)


@pytest.mark.parametrize("size", [1e308, 1e-300, 5e-324])
def test_sizes_at_the_end_of_the_numbers(data: dict[str, Any], size: float) -> None:
    one_sentence(json.dumps(data), size)
    one_sentence(json.dumps(data), 1e9, size)
    for name in library.names():
        law = library.load(name)
        if isinstance(law, library.PublishedLaw):
            for ask in (law.predict_lr, law.predict_batch, law.predict_loss):
                try:
                    value = ask(
                        size, size, **({} if ask == law.predict_loss else {"anchor": (1e9, 2e10, 1e-3)})
                    )
                except (MetaOptError, ValueError):
                    continue
                assert math.isfinite(value), (name, ask)


@pytest.mark.parametrize("field", range(4))
@pytest.mark.parametrize("value", [*JUNK, 1e-300, 1e300, 1j, [1.0, -1.0], [[1, 2], [3, 4]]])
def test_losses_are_finite_or_refused_in_one_sentence(field: int, value: Any) -> None:
    law, given = library.prior("fitted-step-law"), [1e8, 2e9, 65536.0, 1e-3]
    given[field] = value
    said, losses = "", None
    try:
        losses = law.loss(*given)
    except (MetaOptError, ValueError) as error:
        said = str(error)
    assert "\n" not in said
    assert losses is None or all(map(math.isfinite, losses.ravel()))
