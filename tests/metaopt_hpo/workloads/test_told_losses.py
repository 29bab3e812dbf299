"""Where the losses of any program are: on its output, in its files, in files that runs share."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from programs import configuration

from metaopt_hpo.comparison.objective import ObjectiveError
from metaopt_hpo.workloads import reported
from metaopt_hpo.workloads.placeholders import JobError

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


STEPPED = ("step 10 val loss 3.0", "step 20 val loss 2.5")
ENDS = [
    # what follows, the loss at the end, what is said of it
    (("final_val_loss 2.4",), 2.4, ""),
    (("Final val loss: 2.4",), 2.4, ""),
    (('{"step": 20, "final_val_loss": 2.4}',), 2.4, ""),
    (("final_val_loss 2.4", "step 30 val loss 2.6"), 2.6, ""),  # it went on from its checkpoint
    (("val loss 2.4",), 2.5, "val_loss 2.4, said without a step"),
    (("val loss 2.4", "step 30 val loss 2.6"), 2.6, ""),
    (("val loss 2.4", "final_val_loss 2.3"), 2.3, ""),
    (("best val loss 2.3",), 2.5, ""),
    (("step 30 val loss 2.6 (best val loss: 2.3)",), 2.6, ""),
    (('{"best_val_loss": 2.3}',), 2.5, ""),
    (("final_train_loss 2.2", "test_loss 2.9", "ppl=20.0", "val_ppl 20.0"), 2.5, ""),
]


@pytest.mark.parametrize(("end", "loss", "says"), ENDS)
@pytest.mark.parametrize("metric", ["", "val_loss"])
def test_a_loss_without_a_step_is_the_ends_where_it_is_called_so(
    tmp_path: Path, end: tuple[str, ...], loss: float, says: str, metric: str
) -> None:
    log = tmp_path / "stdout.log"
    log.write_text("\n".join((*STEPPED, *end)) + "\n")
    found = reported.find([log], tmp_path, batch=1, metric=metric)
    assert found is not None
    assert (found.name, found.points[:2]) == ("val_loss", ((10, 3.0), (20, 2.5)))
    assert found.final == loss
    assert found.remark.startswith(says)
    assert bool(found.remark) == bool(says)


@pytest.mark.parametrize("line", ["final val loss: 2.4", "final_loss 2.4", '{"final_validation_loss": 2.4}'])
def test_a_loss_that_is_said_at_the_end_alone_is_read(tmp_path: Path, line: str) -> None:
    log = tmp_path / "stdout.log"
    log.write_text(f"step 10 train loss 3.0\n{line}\n")
    found = reported.find([log], tmp_path, batch=1)
    assert found is not None
    assert found.final == 2.4


def test_a_training_loss_beside_a_held_out_perplexity_is_said(make) -> None:
    body = 'for s in points: print(f"step {s} train loss {loss(s)} val ppl 20.0")'
    record = make(body).run(configuration())
    assert (record.state, record.loss) == ("complete", 2 + 3 / 41)
    assert "val_ppl is on held-out data: name that with metric=val_ppl" in record.reason
    named = make(body, metric="val_ppl").run(configuration())
    assert (named.loss, named.reason) == (pytest.approx(math.log(20.0)), "")


@pytest.mark.parametrize(("line", "name"), [("ppl=20.0", "ppl"), ("val bpb 1.2", "val_bpb")])
def test_what_may_be_the_loss_is_not_guessed_but_named(make, line: str, name: str) -> None:
    body = f"for s in points: print(f'step {{s}} {line}')"
    with pytest.raises(ObjectiveError, match=f"no loss was found .* it says {name}: .* metric={name}"):
        make(body).run(configuration())
    assert make(body, metric=name).run(configuration()).state == "complete"


def test_a_perplexity_below_one_is_refused(make) -> None:
    with pytest.raises(ObjectiveError, match=r"ppl is 0\.5 .* no perplexity"):
        make("print('step 40 ppl 0.5')", metric="ppl").run(configuration())


def test_a_job_without_a_loss_says_what_to_print(make) -> None:
    with pytest.raises(ObjectiveError, match="no loss was found") as caught:
        make("print('all done')").run(configuration())
    assert "stdout.log" in str(caught.value)


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
