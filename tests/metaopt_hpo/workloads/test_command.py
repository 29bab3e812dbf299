"""Any program as a workload: placeholders, and the words of a command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from programs import LINE, configuration

from metaopt_hpo.workloads.command import Job
from metaopt_hpo.workloads.jobs import job_of, parse_sizes
from metaopt_hpo.workloads.placeholders import JobError


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{py} train.py --width {width} --lr {lr} --steps {stps}", "did you mean {steps}"),
        (
            "{py} train.py --width {width} --lr {lr} --steps {nothing_like_it}",
            "unknown placeholder {nothing_like_it}",
        ),
        ("{py} train.py --width {width} --steps {steps}", "no place for {lr}"),
        ("{py} train.py --lr {lr} --steps {steps}", "{width} or {size}"),
        ("{py} train.py --lr {lr} --width {width}", "{steps} or {tokens}"),
        ("{py} train.py --lr {lr} --width {width} --steps {steps} > log", "only a shell understands"),
        ("{py} train.py --lr {lr} --width {width} --steps {steps", "cannot be filled in"),
        ("{py} train.py --lr {lr!z} --width {width} --steps {steps}", "cannot be filled in"),
        ("{py} train.py --lr {lr:.3q} --width {width} --steps {steps}", "cannot be filled in"),
        ("{py} train.py --lr {lr.real} --width {width} --steps {steps}", "cannot be filled in"),
        ("{py} train.py --lr {0} --width {width} --steps {steps}", "unknown placeholder {0}"),
        ("{py} missing.py --lr {lr} --width {width} --steps {steps}", "no file 'missing.py'"),
        ("no-such-program --lr {lr} --width {width} --steps {steps}", "no program 'no-such-program'"),
        ("{py} train.py --lr '{lr} --width {width} --steps {steps}", "cannot be split"),
        ("{py} train.py --bs {sequences} --lr {lr} --width {width} --steps {steps}", "needs sequence_length"),
        ("", "empty"),
    ],
)
def test_a_bad_line_is_refused_before_anything_starts(make, line: str, says: str) -> None:
    with pytest.raises(JobError) as caught:
        make("raise SystemExit('was started')", line.replace("{py}", sys.executable))
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_no_value_becomes_an_argument_or_a_command(make, tmp_path: Path) -> None:
    evil = "a b; touch " + str(tmp_path / "touched") + " $(id) --lr 9 'q\" \\"
    body = 'print(json.dumps({"step": a.steps, "loss": 2.0, "x": 1})); (out / "note").write_text(a.note)'
    objective = make(body, LINE + " --note={note}", values={"note": evil})
    record = objective.run(configuration())
    assert Path(str(record.params["logs"]), "out", "note").read_text() == evil
    assert not (tmp_path / "touched").exists()


def test_placeholders_are_whole_numbers_where_they_are_whole(make) -> None:
    body = (
        'print(json.dumps({"step": a.steps, "loss": 2.0})); (out / "argv").write_text(json.dumps(sys.argv))'
    )
    line = LINE.replace("{lr}", "{lr:.2e}")
    record = make(body, line).run(configuration(lr=0.0123))
    argv = json.loads(Path(str(record.params["logs"]), "out", "argv").read_text())
    assert argv[1:9] == ["--width", "8", "--lr", "1.23e-02", "--steps", "40", "--seed", "3"]


def test_words_of_a_command_line_make_a_job(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    job = job_of(
        LINE + " --x {mine}",
        {"sizes": "8:100,16:4e2", "batch": "16", "retries": "2", "mine": "7", "cwd": str(tmp_path)},
        tmp_path,
    )
    assert isinstance(job, Job)
    assert (dict(job.sizes), job.retries, dict(job.values)) == ({"8": 100.0, "16": 400.0}, 2, {"mine": "7"})
    with pytest.raises(JobError, match="needs its sizes"):
        job_of(LINE, {}, tmp_path)
    with pytest.raises(JobError, match="WIDTH:PARAMETERS"):
        parse_sizes("8=100")


@pytest.mark.parametrize(
    ("line", "changed", "says"),
    [
        (LINE, {"metrik": "nll"}, "did you mean metric?"),
        (LINE, {"mine": "7"}, "write {mine}"),
        (LINE, {"sizes": "8:100,8:200"}, "sizes name 8 twice"),
        (LINE, {"timeout": "10m"}, "number of seconds"),
        (LINE, {"retries": "1.5"}, "whole number"),
        (f"CUDA_VISIBLE_DEVICES=0 {LINE}", {}, "put env in front"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(
    tmp_path: Path, line: str, changed: dict[str, str], says: str
) -> None:
    (tmp_path / "train.py").write_text("")
    options = {"sizes": "8:100,16:400", "batch": "16", "cwd": str(tmp_path), **changed}
    with pytest.raises(JobError) as caught:
        job_of(line, options, tmp_path)
    assert says in str(caught.value)
