"""Any program as a workload: placeholders, where its losses are, and how it ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from metaopt_hpo.comparison.command_objective import CommandObjective
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError
from metaopt_hpo.workloads import reported
from metaopt_hpo.workloads.command import Job
from metaopt_hpo.workloads.jobs import command_job, file_job, job_of, parse_sizes
from metaopt_hpo.workloads.placeholders import JobError

LINE = (
    f"{sys.executable} train.py --width {{width}} --lr {{lr}} --steps {{steps}} --seed {{seed}} --out {{out}}"
)
HEAD = """
import argparse, json, math, os, pathlib, sys, time
p = argparse.ArgumentParser()
for name, kind in (("width", int), ("lr", float), ("steps", int), ("seed", int), ("out", str), ("note", str)):
    p.add_argument("--" + name, type=kind)
a = p.parse_args()
out = pathlib.Path(a.out)
def loss(step):
    return 2 + 3 / (1 + step) + 0.1 * math.log(a.lr / 0.01) ** 2
points = range(0, a.steps + 1, max(1, a.steps // 10))
"""
SIZES = {8: 100.0, 16: 400.0}


def configuration(**changes: object) -> Configuration:
    return Configuration(**{"size": 100.0, "tokens": 640.0, "batch": 16.0, "lr": 0.01, "seed": 3, **changes})  # type: ignore[arg-type]


@pytest.fixture
def make(tmp_path: Path):
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


WRITERS = {
    "json lines": """
        for s in points: print(json.dumps({"step": s, "train_loss": 9.0, "val_loss": loss(s)}), flush=True)
    """,
    "dictionaries": """
        for s in points: print({"loss": 9.0, "step": s, "eval_loss": loss(s), "epoch": 1}, flush=True)
    """,
    "text": """
        for s in points: print(f"[12:00] step {s}/{a.steps} | train loss: 9.0 | val loss: {loss(s):.6f} | lr 3e-4")
    """,
    "nanogpt": """
        for s in points: print(f"step {s}: train loss 9.0000, val loss {loss(s):.6f}")
    """,
    "tensors": """
        for s in points: print(f"step {s} loss: tensor({loss(s):.6f}, device='cuda:0', grad_fn=<NllLossBackward0>)")
    """,
    "tensors in dictionaries": """
        for s in points: print("{'step': %d, 'loss': tensor(%.6f, device='cuda:0')}" % (s, loss(s)))
    """,
    "csv with semicolons": """
        with open(out / "m.csv", "w") as f:
            f.write("step;train_loss;val_loss\\n")
            for s in points: f.write(f"{s};9,0;{loss(s)}\\n".replace(".", ","))
    """,
    "log on stderr": """
        for s in points: print(f"INFO:root:iter {s}: loss {loss(s):.6f}, time 12.3ms", file=sys.stderr)
    """,
    "jsonl file": """
        with open(out / "m.jsonl", "w") as f:
            for s in points: f.write(json.dumps({"global_step": s, "val": {"loss": loss(s)}}) + "\\n")
    """,
    "csv file": """
        with open(out / "m.csv", "w") as f:
            f.write("step,train_loss,val_loss\\n")
            for s in points: f.write(f"{s},9.0,{loss(s)}\\n")
    """,
    "tokens": """
        for s in points: print(json.dumps({"tokens": 16 * s, "loss": loss(s)}))
    """,
    "trainer state": """
        rows = [{"step": s, "eval_loss": loss(s)} for s in points]
        json.dump({"log_history": rows}, open(out / "trainer_state.json", "w"))
    """,
    "no progress": """
        for s in points: print(json.dumps({"val_loss": loss(s)}))
    """,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_losses_are_found_however_they_are_told(make, kind: str) -> None:
    record = make(WRITERS[kind]).run(configuration())
    assert (record.state, record.tokens, record.target_tokens) == ("complete", 640, 640)
    assert record.loss == pytest.approx(2 + 3 / 41, abs=1e-5)
    assert record.curve is not None
    assert len(record.curve.tokens) >= 8
    assert record.curve.tokens[-1] == 640
    assert record.cost == 6 * 100 * 640
    assert Path(str(record.params["logs"]), "stdout.log").exists()


def test_tensorboard_is_read(make) -> None:
    body = """
    from torch.utils.tensorboard import SummaryWriter
    w = SummaryWriter(out / "tb")
    for s in points: w.add_scalar("val/loss", loss(s), s); w.add_scalar("train/loss", 9.0, s)
    w.close()
    """
    pytest.importorskip("tensorboard")
    record = make(body, losses="tb", metric="val/loss").run(configuration())
    assert (record.state, record.tokens) == ("complete", 640)
    assert record.loss == pytest.approx(2 + 3 / 41, abs=1e-5)


def test_wandb_offline_runs_are_read(make, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    kept = Path(__file__).parents[1] / "trials" / "exports" / "wandb"
    body = f"import shutil; shutil.copytree({str(kept)!r}, out / 'w', dirs_exist_ok=True)"
    record = make(body, losses="w", metric="eval/loss").run(configuration())
    assert record.loss > 0
    assert record.curve is not None


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


TOLD = [
    ("\x1b[32mstep\x1b[0m 10 \x1b[1mloss\x1b[0m: \x1b[31m3.5\x1b[0m", "", (10, 3.5)),
    ('\x1b[36m{"step": 10, "loss": 3.5}\x1b[0m', "", (10, 3.5)),
    ("step 1,000, loss 3.5", "", (1000, 3.5)),
    ("step 1_000 loss 3.5", "", (1000, 3.5)),
    (" iteration      10/  500 | lm loss: 3.5E+00 | loss scale: 1.0 |", "", (10, 3.5)),
    ("step 10 loss 3,511", "", None),  # of a locale that writes 3,5
    ("step 10 loss 3,51", "", None),
    ("step 10 | val nll 3.5 | train nll 2.0", "val nll", (10, 3.5)),
    ("step 10 | val loss 3.5 | loss 2.0", "val loss", (10, 3.5)),
    ("step 10 | val loss 2.0 | loss 3.5", "loss", (10, 3.5)),
    ('{"step": 10, "Val NLL": 3.5}', "val_nll", (10, 3.5)),
    ("step 10 ppl 20.0", "ppl", (10, math.log(20.0))),
    ('{"step": 10, "val_perplexity": 20.0}', "val_perplexity", (10, math.log(20.0))),
    ("step 10 val bits 3.0", "val_bits", (10, 3.0 * math.log(2.0))),
]


@pytest.mark.parametrize(("line", "metric", "told"), TOLD)
def test_a_line_says_its_step_and_its_loss_in_nats_or_nothing(
    tmp_path: Path, line: str, metric: str, told: tuple[float, float] | None
) -> None:
    log = tmp_path / "stdout.log"
    log.write_text(line + "\n")
    found = reported.find([log], tmp_path, batch=1, metric=metric)
    assert (found and found.points) == (told and (pytest.approx(told),))


def test_a_perplexity_below_one_is_refused(make) -> None:
    with pytest.raises(ObjectiveError, match=r"ppl is 0\.5 .* no perplexity"):
        make("print('step 40 ppl 0.5')", metric="ppl").run(configuration())


@pytest.mark.parametrize(
    ("body", "state", "says"),
    [
        ("print('loss: 3.0'); sys.exit(7)", "failed", "exit code 7"),
        (
            "raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')",
            "failed",
            "out of memory at 16",
        ),
        ("raise FloatingPointError('loss is NaN at step 3')", "diverged", "NaN"),
        (
            "for s in points: print(json.dumps({'step': s, 'loss': float('nan') if s > 10 else 3.0}))",
            "diverged",
            "not finite",
        ),
        ("for s in points: print(json.dumps({'step': s, 'loss': 3.0 + s}))", "diverged", "more than 2 times"),
        ("raise ValueError('inf/nan in the gradients')", "diverged", "inf/nan"),
        ("import nanochat_that_is_not_there", "failed", "nanochat"),
        ("open('/home/hernan/nan.bin')", "failed", "nan.bin"),
        ("print(json.dumps({'step': 8, 'loss': 3.0}))", "stopped", "128 of 640"),
        ("for s in (0, 15, 30): print(json.dumps({'step': s, 'loss': 3.0}))", "complete", ""),
        ("for s in (0, 10, 20): print(json.dumps({'step': s, 'loss': 3.0}))", "stopped", "320 of 640"),
        ("os.kill(os.getpid(), 9)", "failed", "SIGKILL"),
        ("print(json.dumps({'step': 8, 'loss': 3.0}), flush=True); time.sleep(60)", "failed", "limit of 1"),
    ],
)
def test_how_a_run_ended_is_said(make, body: str, state: str, says: str) -> None:
    began = time.monotonic()
    record = make(body, timeout=1.5 if "sleep" in body else None, retries=0).run(configuration())
    assert record.state == state
    assert says.lower() in record.reason.lower() or (says == "SIGKILL" and "out of memory" in record.reason)
    assert time.monotonic() - began < 30


def test_a_run_that_failed_by_chance_is_tried_again_in_its_folder(make) -> None:
    body = """
    if not (out / "once").exists():
        (out / "once").touch()
        sys.exit("the network is down")
    print(json.dumps({"step": a.steps, "loss": 2.0}))
    """
    record = make(body, retries=1).run(configuration())
    assert (record.state, record.params["attempts"]) == ("complete", 2)
    assert "network" in Path(str(record.params["logs"]), "stderr.log.1").read_text()


def test_a_job_without_a_loss_says_what_to_print(make) -> None:
    with pytest.raises(ObjectiveError, match="no loss was found") as caught:
        make("print('all done')").run(configuration())
    assert "stdout.log" in str(caught.value)


def test_a_reason_to_stop_ends_the_program_and_what_it_started(make, tmp_path: Path) -> None:
    body = """
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out / "child").write_text(str(child.pid))
    for s in range(1, 41):
        print(json.dumps({"step": s, "loss": 5.0}), flush=True)
        time.sleep(0.05)
    time.sleep(60)
    """
    seen: list[int] = []

    def report(tokens: int, loss: float) -> str | None:
        seen.append(tokens)
        return "worse than others" if tokens > 100 else None

    record = make(body).run(configuration(), report)
    assert (record.state, record.reason) == ("pruned", "worse than others")
    assert seen == sorted(set(seen))
    child = int(Path(str(record.params["logs"]), "out", "child").read_text())
    assert not alive(child)


def test_nothing_is_left_when_the_parent_is_killed(make, tmp_path: Path) -> None:
    make('(out.parent.parent / "pid").write_text(str(os.getpid())); time.sleep(60)')
    code = f"""
from pathlib import Path
from metaopt_hpo.comparison.command_objective import CommandObjective
from metaopt_hpo.comparison.objective import Configuration
from metaopt_hpo.workloads.jobs import command_job
here = Path({str(tmp_path)!r})
job = command_job({LINE!r}, sizes={{8: 100.0}}, batch=16, cwd=here, folder=here / "jobs")
CommandObjective(job).run(Configuration(size=100.0, tokens=640.0, batch=16.0, lr=0.01))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid = tmp_path / "jobs" / "pid"
    wait(lambda: pid.exists() and pid.read_text() != "")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait(lambda: not alive(int(pid.read_text())))


def test_a_run_goes_on_in_the_folder_it_began_in(make, tmp_path: Path) -> None:
    body = """
    (out / "starts").open("a").write("x")
    if len((out / "starts").read_text()) == 1: sys.exit(1)
    print(json.dumps({"step": a.steps, "loss": 2.0}))
    """
    objective = make(body, retries=0)
    marker = tmp_path / "marker"
    assert objective.run_saved(configuration(), lambda t, v: None, marker).state == "failed"
    record = objective.run_saved(configuration(), lambda t, v: None, marker)
    assert record.state == "complete"
    assert len(list((tmp_path / "jobs").iterdir())) == 1


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


@pytest.mark.parametrize("mode", ["a", "w"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_a_file_that_runs_share_gives_each_its_own_losses(make, tmp_path: Path, mode: str, kind: str) -> None:
    file = tmp_path / f"all.{kind}"
    row = "f'{s},{a.lr}\\n'" if kind == "csv" else "json.dumps({'step': s, 'loss': a.lr}) + '\\n'"
    body = f"""
    with open({str(file)!r}, {mode!r}) as f:
        if {kind == "csv"} and f.tell() == 0: f.write("step,loss\\n")
        for s in points: f.write({row})
    """
    objective = make(body, losses=str(file))
    for tokens, lr in ((640.0, 0.5), (320.0, 0.25), (320.0, 0.25)):
        record = objective.run(configuration(tokens=tokens, lr=lr))
        assert (record.loss, record.curve.tokens[-1]) == (lr, tokens)
    silent = make("pass", losses=str(file))
    with pytest.raises(ObjectiveError, match="no loss"):
        silent.run(configuration())


def test_a_folder_that_runs_share_is_refused(make, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="one folder"):
        make("pass", losses=str(tmp_path / "tb"))


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


def test_a_file_of_windows_in_a_folder_with_spaces_is_a_job(tmp_path: Path) -> None:
    file = tmp_path / "my jobs" / "job.py"
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())
    job = job_of(str(file), {}, tmp_path)
    assert (job.file, dict(job.sizes)) == (file, {"8": 100.0, "16": 400.0})


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait(done, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
