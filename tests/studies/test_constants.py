"""The page of constants has every one that the laws have, with its value, and a constant is really scaled."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from studies.constants import command
from studies.constants.found import constants, scaled

REMEDY = "run `python -m studies.constants --data DIR` (with --report it measures nothing)"


def rows() -> dict[str, str]:
    """Constant → value, of the page's table."""
    text = command.PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", text, re.MULTILINE))


def test_the_page_has_every_constant_of_the_laws_and_no_other() -> None:
    assert rows() == {c.label: c.value for c in constants()}, REMEDY


def test_every_constant_says_what_it_is() -> None:
    assert [c.label for c in constants() if not c.source] == []


def test_what_is_kept_is_of_constants_that_there_are() -> None:
    kept = pd.read_parquet(command.FILE)
    stale = set(kept["constant"]) - {c.label for c in constants()}
    assert not stale, REMEDY
    assert not kept.duplicated(["constant", "factor"]).any()


def test_other_kinds_of_constants_are_scaled_member_by_member() -> None:
    assert scaled({"a": (1.0, 3), "b": 1}, 0.5) == {"a": (0.5, 2), "b": 1}
    np.testing.assert_array_equal(scaled(np.arange(3.0), 2.0), [0.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("module", "name", "asked"),
    [
        (
            "fitting.floor_error",
            "LEVEL_ERROR",
            "floor_error.LEVELS['size'] == 2 * 2e-3",
        ),  # another is made of it
        ("policy.stopping", "STOP_BELOW", "stopping.Rule().stop_below == 2 * 0.05"),  # a field's default
        ("forms.edge", "LOST", "edge.LOST == 2 * 0.5"),
    ],
)
def test_a_scaled_constant_reaches_all_that_is_made_of_it(module: str, name: str, asked: str) -> None:
    code = f"""
import metaopt_hpo.scaling.policy
from studies.constants.found import import_scaled
import_scaled("metaopt_hpo.scaling.{module}", "{name}", 2.0)
from metaopt_hpo.scaling.policy import stopping
from metaopt_hpo.scaling.fitting import floor_error
from metaopt_hpo.scaling.forms import edge
assert {asked}
"""
    folder = Path(command.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, timeout=120)


def test_every_measure_of_a_constant_that_is_read_is_made() -> None:
    reads = {m: set() for m in ("fits", "few", "worlds", "schedules", "running", "search")}
    one, other = (c for c in constants() if c.label in ("forms.floor.PRIOR", "policy.points.FIRST"))
    reads["fits"] = reads["search"] = {(one.module, one.name), (other.module, other.name)}
    assert command.wanted(one, reads, set()) == ["fits"]
    assert command.wanted(other, reads, set()) == ["search"]
    assert command.wanted(other, {**reads, "search": set()}, set()) == ["fits"]
