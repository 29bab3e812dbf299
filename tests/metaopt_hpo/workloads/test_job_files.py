"""A Python file as a workload."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from programs import configuration

from metaopt_hpo.comparison.command_objective import CommandObjective
from metaopt_hpo.workloads.jobs import file_job, job_of
from metaopt_hpo.workloads.placeholders import JobError

JOB = """
BATCH = 16
def sizes():
    return {8: 100, 16: 400}
def train(config):
    for step in range(0, config.steps + 1, 4):
        yield step, 2 + 3 / (1 + step) + 0 * config.width
def flops(config):
    return 1000.0 * config.tokens
"""


def test_a_python_file_is_a_job(tmp_path: Path) -> None:
    file = tmp_path / "my_job.py"
    file.write_text(JOB)
    objective = CommandObjective(file_job(file, folder=tmp_path / "jobs"))
    assert (objective.name, objective.sizes, objective.job.batch) == ("my_job", (100.0, 400.0), 16.0)
    record = objective.run(configuration())
    assert (record.state, record.loss) == ("complete", 2 + 3 / 41)
    assert record.cost == pytest.approx(1000.0 * 640)


def test_metaoptimize_runs_in_a_job_that_imports_nothing_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "tiny.py"
    file.write_text(
        textwrap.dedent("""
        import torch
        BATCH = 16
        def sizes(): return {4: 24.0}
        def train(config):
            torch.manual_seed(config.seed)
            model = torch.nn.Linear(config.width, 4)
            run = config.optimizer(torch.optim.AdamW(model.parameters()), model)
            x = torch.randn(64, config.width); y = x @ torch.randn(config.width, 4)
            for step in range(config.steps):
                loss = (model(x) - y).square().mean()
                loss.backward()
                run.step(loss)
                if step % 8 == 7: yield step + 1, float(loss)
        """)
    )
    objective = CommandObjective(file_job(file, folder=tmp_path / "jobs"))
    own = objective.run(configuration(size=24.0, tokens=16.0 * 120, strategy="metaoptimize"))
    assert (own.state, own.tuning) == ("complete", "self")
    assert own.found_lr > 0
    plain = objective.run(configuration(size=24.0, tokens=16.0 * 120, strategy="wsd", lr=0.05))
    assert (plain.state, plain.tuning) == ("complete", "external")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def train(config): yield 1", "no sizes()"),
        ("def sizes(): return {1: 2}", "no train()"),
        ("def sizes(: return", "is not Python"),
        ("import nothing_there\nBATCH=1\ndef sizes(): return {1: 2}\ndef train(c): yield 1", "nothing_there"),
        ("def sizes(): return {1: 2}\ndef train(c): yield 1", "does not say its batch"),
        ("BATCH=1\ndef sizes(): return {1: -2}\ndef train(c): yield 1", "positive"),
        (
            "BATCH=1\ndef sizes(): return {1: True}\ndef train(c): yield 1",
            "map the size's knob to parameters",
        ),
        ("BATCH=True\ndef sizes(): return {1: 2}\ndef train(c): yield 1", "BATCH as a number, got True"),
        ("BATCH=1\ndef sizes(): return {}\ndef train(c): yield 1", "no sizes"),
        ("BATCH=1\ndef sizes(): return {1: 2}\ndef train(): yield 1", "cannot be called as train(config)"),
        ("BATCH=1\ndef sizes(): return {1: 2}\ndef train(a, b): yield 1", "missing a required argument: 'b'"),
        ("BATCH=1\ndef sizes(x): return {1: 2}\ndef train(c): yield 1", "cannot be called as sizes()"),
        ("BATCH=1\ndef sizes(): return {1: 2}\ntrain = 3", "train is no function"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "job.py"
    file.write_text(text)
    with pytest.raises(JobError) as caught:
        file_job(file)
    assert says in str(caught.value).replace("\n", "|")
    assert "|" not in str(caught.value).replace("\n", "|")


def test_a_file_of_windows_in_a_folder_with_spaces_is_a_job(tmp_path: Path) -> None:
    file = tmp_path / "my jobs" / "job.py"
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())
    job = job_of(str(file), {}, tmp_path)
    assert (job.file, dict(job.sizes)) == (file, {"8": 100.0, "16": 400.0})
