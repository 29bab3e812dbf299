"""The study: a design without repeats, runs that resume, and a judge that finds what was planted."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.registry import available
from metaopt_hpo.trials.record import Curve, TrialRecord
from metaopt_hpo.trials.table import TrialTable
from studies.one_run import runner
from studies.one_run.cases import (
    CASES,
    MAIN,
    NEVER_COMMIT,
    ONE_RUN,
    RIVALS,
    SENSITIVITY,
    SENSITIVITY_CASE,
    STARTS,
    STREAM,
    TEXT,
    WATCHED,
    Cell,
    StudyError,
    case_named,
    cells,
    single,
    started,
    tuned,
)
from studies.one_run.command import study
from studies.one_run.outcome import judge
from studies.one_run.page import markdown, render

SMALL = case_named("regression")


def record(cell: Cell, loss: float, plateau: float = math.nan) -> TrialRecord:
    return TrialRecord(
        size=1000.0 * cell.case.width,
        tokens=1e4,
        batch=10.0,
        lr=cell.lr or 1e-3,
        loss=loss,
        found_lr=plateau,
        strategy=cell.strategy,
        seed=cell.seed,
        trial=cell.key,
        study=runner.STUDY,
        params={"case": cell.case.name, **dict(cell.options)},
    )


def bowl(lr: float, optimum: float) -> float:
    return 2.0 * (1 + 0.02 * math.log(lr / optimum) ** 2)


def planted(ours: float, seeds: int = 5, optimum: float = 8e-3) -> TrialTable:
    """WSD with a bowl around `optimum`, cosine 5 % worse, our run at `ours` times the loss of the optimum."""
    records = []
    for seed in range(seeds):
        noise = 1 + 0.01 * seed
        for case in MAIN:
            at = optimum * 64 / case.width
            for cell in tuned(case, seed, ("wsd", "cosine")):
                assert cell.lr is not None
                worse = 1.05 if cell.strategy == "cosine" else 1.0
                records.append(record(cell, worse * noise * bowl(cell.lr, at)))
            (own,) = single(case, seed, (ONE_RUN,))
            records.append(record(own, ours * noise * 2.0, plateau=at))
            records += [record(c, 1.1 * noise * 2.0) for c in single(case, seed, RIVALS)]
    return TrialTable.from_records(records)


def test_the_design_names_every_run_once_and_knows_its_strategies() -> None:
    for design in (cells(), cells(short=True), cells(seeds=1)):
        keys = [c.key for c in design]
        assert len(set(keys)) == len(keys)
    assert {c.case.name for c in cells()} == {c.name for c in CASES}
    assert set(RIVALS) <= set(available())
    for cell in [
        *cells(seeds=1),
        *(Cell(case=SMALL, strategy=ONE_RUN, seed=0, options=o) for _, o in SENSITIVITY),
    ]:
        make(cell.strategy, **cell.strategy_options())


def test_twelve_starts_span_the_promise() -> None:
    assert len(STARTS) == 12
    assert STARTS[0] == pytest.approx(1e-6)
    assert STARTS[-1] == pytest.approx(1e-1)


@pytest.mark.parametrize("ours", [0.97, 1.0, 1.04])
def test_a_planted_difference_is_found(ours: float) -> None:
    outcome = judge(planted(ours))
    assert outcome.mean_against_best is not None
    # the grid does not hold the optimum exactly, so that its best lies up to a third of an octave's bowl above
    assert math.log(ours) - 0.003 <= outcome.mean_against_best.mean <= math.log(ours) + 1e-9
    for case in outcome.cases:
        assert case.runs == 14
        assert case.schedule_loss["cosine"] == pytest.approx(1.05 * case.schedule_loss["wsd"])


def test_the_luck_of_a_grid_is_told_apart() -> None:
    """One tuned run of another lr is lucky on each seed: the best of all has it, the choice of the other seeds not."""
    records = []
    for r in planted(1.0).records():
        lucky = r.strategy == "cosine" and r.lr == pytest.approx(TEXT[0].grid[r.seed])
        records.append(replace(r, loss=0.8 * r.loss) if lucky and r.params["case"] == TEXT[0].name else r)
    first = next(o for o in judge(TrialTable.from_records(records)).cases if o.case == TEXT[0])
    plain = next(o for o in judge(planted(1.0)).cases if o.case == TEXT[0])
    assert first.luck is not None
    assert first.against_best is not None
    assert first.against_chosen is not None
    assert plain.luck is not None
    assert plain.luck.mean == pytest.approx(0.0, abs=1e-12)
    assert first.luck.mean > 0.02
    assert first.against_chosen.mean == pytest.approx(plain.against_chosen.mean, abs=1e-9)  # type: ignore[union-attr]
    assert first.against_best.mean == pytest.approx(first.against_chosen.mean + first.luck.mean)


def test_rivals_are_counted_in_pairs() -> None:
    outcome = judge(planted(1.0))
    assert (outcome.wins, outcome.pairs) == (len(RIVALS) * len(MAIN) * 5,) * 2
    assert all(r.difference == pytest.approx(-math.log(1.1)) for r in outcome.rivals)
    assert all(r.p < 0.05 and r.p_cases < 0.05 for r in outcome.rivals)


def test_a_case_with_one_seed_does_not_hide_what_the_others_show() -> None:
    some = [r for r in planted(0.99).records() if r.params["case"] != "cifar10" or r.seed == 0]
    for rival in judge(TrialTable.from_records(some)).rivals:
        assert rival.pairs == 5 * (len(MAIN) - 1) + 1
        assert rival.p < 0.05


def test_a_rival_that_diverges_loses_its_pairs() -> None:
    table = planted(1.0)
    records = [
        replace(r, state="diverged", loss=math.nan) if r.strategy == "momo" else r for r in table.records()
    ]
    momo = next(r for r in judge(TrialTable.from_records(records)).rivals if r.name == "momo")
    assert momo.failed == momo.pairs == momo.wins
    assert math.isnan(momo.difference)


def test_a_stream_is_judged_as_recommended_and_as_in_the_paper() -> None:
    records = []
    for seed in range(2):
        records += [record(c, bowl(c.lr or 1.0, 8e-3)) for c in tuned(STREAM, seed, ("constant",))]
        for changed, loss in ((None, 1.9), (NEVER_COMMIT, 2.2)):
            records += [record(c, loss) for c in single(STREAM, seed, (ONE_RUN,), changed)]
    found = dict(judge(TrialTable.from_records(records)).stream)
    assert [o.loss for o in found.values()] == pytest.approx([1.9, 2.2])
    best = min(bowl(lr, 8e-3) for lr in STREAM.grid)
    for o, loss in zip(found.values(), (1.9, 2.2), strict=True):
        assert o.against_best is not None
        assert o.against_best.mean == pytest.approx(math.log(loss / best))


def test_a_law_that_holds_transfers_without_loss() -> None:
    transfers = judge(planted(1.0)).transfers
    # planted as 1/width, and size is proportional to width
    assert [t.case for t in transfers] == list(TEXT[2:])
    for t in transfers:
        assert t.ratio == pytest.approx(1.0, abs=0.02)
        assert t.excess < 1e-3


def test_a_table_that_is_not_finished_yields_what_it_holds() -> None:
    table = planted(1.0)
    some = [r for r in table.records() if r.seed < 2 or r.params["case"] != "digits"]
    some = [r for r in some if r.params["case"] != "cifar10" or r.lr < 5e-3]
    outcome = judge(TrialTable.from_records(some))
    seeds = {o.case.name: len(o.seeds) for o in outcome.cases}
    assert seeds["digits"] == 2
    assert seeds["text-lm 64"] == 5
    assert "cifar10" not in seeds
    # too few seeds to count: the mean is that of the others
    assert outcome.counted == len(MAIN) - 2
    # a schedule that has just been begun does not throw the other's seeds away
    begun = [
        r for r in table.records() if r.params["case"] != "cifar10" or r.strategy != "cosine" or not r.seed
    ]
    cifar = next(o for o in judge(TrialTable.from_records(begun)).cases if o.case.name == "cifar10")
    assert (len(cifar.seeds), cifar.runs, list(cifar.schedule_loss)) == (5, 7, ["wsd"])
    assert judge(TrialTable.from_records(begun)).counted == len(MAIN)
    assert outcome.mean_against_best is not None
    assert outcome.mean_against_best.pairs == 5 * outcome.counted


def test_constant_learning_rates_are_compared_apart() -> None:
    records = planted(1.01).records()
    some = [c for case in MAIN[:2] for seed in range(3) for c in tuned(case, seed, ("constant",))]
    records += [record(c, 2.0 * (1 + 0.01 * c.seed) * (1.1 if c.lr != 8e-3 else 1.04)) for c in some]
    outcome = judge(TrialTable.from_records(records))
    against = {o.case.name: o.against_constant for o in outcome.cases}
    first = against[MAIN[0].name]
    assert first is not None
    assert first.pairs == 3
    assert math.exp(first.mean) == pytest.approx(1.01 / 1.04)
    assert against[MAIN[2].name] is None
    assert outcome.cases[0].runs == 14  # they are not among the tuned runs


def test_followed_runs_show_their_step_sizes_and_count_nowhere_else() -> None:
    case = SENSITIVITY_CASE
    curve = Curve((100.0, 1000.0, 1e4), (3.0, 2.5, 2.0), step_size=(1e-4, 1e-3, 1e-2))
    followed = [replace(record(c, 9.0), curve=curve) for c in started(case, 0, WATCHED)]
    table = TrialTable.from_records([*planted(1.0).records(), *followed])
    outcome = judge(table)
    assert [w.start for w in outcome.watched] == list(STARTS)
    assert outcome.watched[0].at(0.1) == pytest.approx(1e-3)
    assert outcome.watched[0].at(10**-1.5) == pytest.approx(10**-3.5)
    assert not outcome.starts
    assert 'id="plot-step-sizes"' in render(table)


def test_the_page_and_the_tables_say_the_same_and_need_no_network() -> None:
    table = planted(1.01)
    text, html = markdown(judge(table)), render(table)
    assert "text-lm 64" in text
    assert "text-lm 64" in html
    assert "Content-Security-Policy" in html
    assert render(table) == html
    assert html.count('id="plot-landscape"') == 1


def test_the_document_shows_what_the_kept_runs_say() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    kept = markdown(judge(runner.read(docs / "studies" / "one_run" / runner.TABLE_FILE)))
    text = (docs / "studies" / "one_run" / "short.md").read_text(encoding="utf-8")
    for section in kept.strip().split("\n\n### "):
        assert section.removeprefix("### ") in text, (
            "run: python -m studies.one_run --report-only --out docs/studies/one_run/study.parquet"
        )


def test_runs_are_kept_resumed_and_not_repeated(tmp_path: Path) -> None:
    design = list(single(SMALL, 0, (ONE_RUN, "constant")))
    design += [Cell(case=SMALL, strategy="wsd", lr=lr, seed=0) for lr in SMALL.grid]
    first = runner.run(design[:1], tmp_path, workers=1)
    stamp = first.records()[0]
    again = runner.run(design, tmp_path, workers=1)
    assert [r.trial for r in again.records()] == [c.key for c in design]  # every one, in order
    assert again.records()[0].seconds == stamp.seconds
    assert again.records()[0].params["r2"] == stamp.params["r2"]
    assert runner.run_cell(design[0]).loss == stamp.loss


def test_missing_data_are_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAOPT_HPO_DATA", str(tmp_path))
    cell = Cell(case=case_named("cifar10"), strategy=ONE_RUN, seed=0)
    kept = runner.run_cell(cell)
    assert (kept.state, kept.reason) == ("failed", runner.NO_DATA)


def test_what_a_strategy_refuses_is_a_failed_run_with_its_reason() -> None:
    kept = runner.run_cell(Cell(case=SMALL, strategy="gdtuo", seed=0, options={"weight_decay": 0.1}))
    assert kept.state == "failed"
    assert "weight_decay" in kept.reason


def test_an_empty_folder_and_an_unknown_case_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"studies\.one_run"):
        runner.read(tmp_path)
    with pytest.raises(StudyError, match="no case"):
        case_named("mnist")


def test_the_command_writes_its_page_from_kept_runs(tmp_path: Path) -> None:
    planted(1.0).write(tmp_path / "study.parquet")
    app = typer.Typer()
    app.command()(study)
    result = CliRunner().invoke(app, ["--report-only", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "One run against tuned schedules" in result.output
    assert (tmp_path / "study.html").stat().st_size > 1e6
