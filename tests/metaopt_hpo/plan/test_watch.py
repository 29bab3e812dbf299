"""Following a plan: read-only, plain where piped, and a run that leaves its band says so."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from metaopt_hpo.plan import store
from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.band import STRAIGHT, band, predicted_end
from metaopt_hpo.plan.costs import PlanError
from metaopt_hpo.plan.estimate import Z90
from metaopt_hpo.plan.page import PAGE_FILE, render, write_page
from metaopt_hpo.plan.run import run
from metaopt_hpo.plan.status import Running, status
from metaopt_hpo.plan.store import folder_of
from metaopt_hpo.plan.watch import follow
from metaopt_hpo.trials.record import Curve, TrialRecord

pytest.importorskip("optuna")

Make = Callable[..., Plan]


def shown(place: Path) -> str:
    text = io.StringIO()
    follow(place, console=Console(file=text, force_terminal=False))
    return text.getvalue()


def test_a_plan_is_shown_as_it_stands(make_plan: Make, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    run(make_plan(), folder, most=1)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}
    text = shown(folder)
    assert "w4" in text
    assert "waiting" in text
    assert "a run that finds its own lr" in text
    assert "of the budget" in text
    assert "\x1b" not in text
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}
    assert after == before
    page = write_page(folder)
    assert page == folder / PAGE_FILE
    html = page.read_text(encoding="utf-8")
    assert html.index("with lr") < html.index("What was decided")


def test_a_plans_file_shows_its_folder(make_plan: Make, tmp_path: Path) -> None:
    for name, folder in (("my.toml", "my"), ("mine", "mine-run")):
        assert folder_of(tmp_path / name) == tmp_path / folder
    file = make_plan().write(tmp_path / "my.toml")
    with pytest.raises(PlanError, match=r"not been run.*metaopt-hpo run"):
        shown(file)
    run(make_plan(), folder_of(file), most=1)
    assert shown(file) == shown(tmp_path / "my")


def test_a_run_under_way_is_seen_in_the_store(make_plan: Make, tmp_path: Path) -> None:
    make_plan().write(tmp_path / "p.toml")
    read = f"Plan.read({str(tmp_path / 'p.toml')!r})"
    code = f"from metaopt_hpo.plan.api import Plan; {read}.run(out={str(tmp_path / 'plan')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "SLOW": "1.5"})
    try:
        end = time.monotonic() + 90
        seen = False
        while not seen and time.monotonic() < end:
            time.sleep(0.3)
            if (tmp_path / "plan" / store.STORE_FILE).exists():
                running = status(tmp_path / "plan").running
                seen = bool(running) and running[0].share > 0
        assert seen
        assert running[0].name == "w4"
        assert running[0].loss > 2
        assert "w4" in shown(tmp_path / "plan")
    finally:
        process.kill()
        process.wait()


def test_other_peoples_stores_are_shown_too(make_plan: Make, tmp_path: Path) -> None:
    run(make_plan(), tmp_path / "plan", most=2)
    text = shown(tmp_path / "plan" / store.STORE_FILE)
    assert "2 runs (2 complete)" in text
    assert "law" in text
    with pytest.raises(PlanError, match="nothing at"):
        shown(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match="holds no running plan"):
        status(tmp_path / "empty")


def record(
    size: float, end: float, share: float = 1.0, loss: float | None = None, name: str = ""
) -> TrialRecord:
    tokens = (1e3, 2e3, 4e3, 8e3)
    return TrialRecord(
        size=size, tokens=8e3 * share, batch=100.0, lr=1e-3, loss=end if loss is None else loss,
        study=name or str(size), target_tokens=8e3, state="complete" if share == 1 else "running",
        curve=Curve(tokens, tuple(end * (1 + 0.1 * (8e3 / t - 1)) for t in tokens)) if share == 1 else None,
    )  # fmt: skip


def test_a_run_that_leaves_its_band_says_so() -> None:
    done = [record(s, 2.0 * (s / 1e4) ** -0.05) for s in (1e4, 2e4, 4e4, 8e4)]
    expected = 2.0 * 16**-0.05 * 1.1  # half-way, every run lay a tenth above its end
    inside = record(1.6e5, 0.0, 0.5, expected, "next")
    found = band(inside, done)
    assert found is not None
    assert found.holds(expected)
    assert Running("next", 0.5, expected, found).remark == ""
    bad = Running("next", 0.5, 1.3 * expected, found)
    assert "next has left its band" in bad.remark
    assert "above" in bad.remark
    assert band(inside, done[:2]) is None


FLOORS = {  # E, A, alpha, B, beta of Hoffmann et al. 2022 and Besiroglu et al. 2024
    "chinchilla": (1.69, 406.4, 0.34, 410.7, 0.28),
    "replication": (1.8172, 482.01, 0.3478, 2085.43, 0.3658),
}


@pytest.mark.parametrize("law", FLOORS)
@pytest.mark.parametrize("times", [1.5, 2, 4, 6, 10, 100, 1000])
def test_the_end_of_a_larger_run_lies_within_its_interval(law: str, times: float) -> None:
    """Losses have floors, so that the slopes of small runs lead below them."""
    e, a, alpha, b, beta = FLOORS[law]

    def end(size: float) -> float:
        return e + a * size**-alpha + b * (20 * size) ** -beta

    for sizes in ((2e6, 4e6, 8e6, 1.6e7), (1e7, 3e7, 1e8), (1e8, 3e8, 1e9)):
        done = [replace(record(n, end(n)), tokens=20 * n, target_tokens=20 * n) for n in sizes]
        size = times * sizes[-1]
        centre, sd = predicted_end(done, size, 20 * size)
        assert abs(math.log(end(size)) - centre) < Z90 * sd
        assert times > STRAIGHT or Z90 * sd < 0.06


def test_a_larger_model_that_falls_further_stays_in_its_band_all_the_way() -> None:
    """All sizes begin at the same loss, so the ratio of a loss on the way to the loss at the end grows with size."""

    def way(size: float, share: float) -> float:
        return 2.0 * (size / 1e4) ** (-0.08 * share) * share**-0.15

    tokens = (1e3, 2e3, 4e3, 8e3)
    done = [
        replace(record(s, way(s, 1.0)), curve=Curve(tokens, tuple(way(s, t / 8e3) for t in tokens)))
        for s in (1e4, 2e4, 4e4, 8e4)
    ]
    for share in (0.125, 0.25, 0.5, 1.0):
        run = replace(record(1.28e6, way(1.28e6, share), share, name="next"), tokens=8e3 * share)
        found = band(run, done)
        assert found is not None
        assert found.holds(run.loss), share
        assert not found.holds(1.2 * run.loss), share


def test_a_hostile_name_is_text_on_the_page(make_plan: Make, tmp_path: Path) -> None:
    import dataclasses

    plan = make_plan()
    evil = dataclasses.replace(plan.pilots[0], name="<script>alert(1)</script>")
    run(make_plan(pilots=(evil,)), tmp_path / "plan", most=1)
    html = render(status(tmp_path / "plan"))
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
