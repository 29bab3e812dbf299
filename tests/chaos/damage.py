"""Damaged inputs by the hundred: each must be refused in one sentence, or answered rightly with finite numbers."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from metaopt_hpo.errors import MetaOptError

SECONDS = 30
"""Of the processor, after which an input counts as hanging."""

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -1e308, 1e-320, 10**400, "x", "", [], {}, [None], {"a": 1},
    math.nan, math.inf, "1e3", -0.0,
)  # fmt: skip


@dataclass
class Counted:
    """How many inputs of a kind were tried, and how many were neither refused nor answered rightly."""

    name: str
    tried: int = 0
    wrong: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, label: str, call: Callable[[], bool]) -> None:
        """Try one: False, or an exception other than a sentence of ours, is wrong."""
        self.tried += 1
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                good = call()
        except (MetaOptError, ValueError) as error:
            # a sentence of ours does not come from inside a library
            good = isinstance(error, MetaOptError) or type(error) is ValueError
            good = good and "\n" not in str(error).strip() and len(str(error)) < 600
            if not good:
                self.notes.append(f"{self.name} {label}: no sentence: {str(error)[:300]!r}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.notes.append(f"{self.name} {label}: {type(error).__name__}: {str(error)[:120]}")
            good = False
        else:
            if not good:
                self.notes.append(f"{self.name} {label}: a wrong answer")
        self.wrong += not good


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise where the block takes too long."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def checkpoints(seed: int, count: int = 400) -> Counted:
    """Single flipped bits of a real run's checkpoint; none may resume."""
    import torch

    from metaopt_hpo.strategies import make
    from metaopt_hpo.training import CheckpointError
    from metaopt_hpo.training.run import TrainingRun

    draw, counted = random.Random(seed), Counted("checkpoint, one bit flipped or cut short")

    def run(file: Path, until: int) -> TrainingRun:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        x = torch.randn(32, 8)
        made = TrainingRun(
            model, make("metaoptimize"), size=200, tokens=1600, batch=32, checkpoint=file,
            evaluate=lambda: (model(x) - x.sum(1, keepdim=True)).square().mean(),
        )  # fmt: skip
        with made as going:
            for step in going:
                going.step((model(x) - x.sum(1, keepdim=True)).square().mean())
                if step + 1 == until:
                    break
        return made

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.pt"
        run(file, 32)
        whole = file.read_bytes()
        for _ in range(count):
            data = bytearray(whole)
            if draw.random() < 0.1:
                del data[draw.randrange(len(data)) :]
            else:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file.write_bytes(data)

            def refused() -> bool:
                try:
                    run(file, 50)
                except CheckpointError:
                    return True
                return False

            counted.count("resumed", refused)
    return counted


def laws(seed: int, count: int = 1000) -> Counted:
    """A law's JSON with junk in a place, and without its checksum, so that the schema is what is tried."""
    from metaopt_hpo.scaling import Law, library

    draw, counted = random.Random(seed), Counted("law")
    whole = json.loads(library.prior("fitted-step-law").to_json())
    whole.pop("checksum")
    for name in ("a", "b", "slope", "floor"):
        whole["draws"][name] = whole["draws"][name][:3]
    found = list(places(whole))

    def answered(text: str) -> bool:
        law = Law.from_json(text)
        p = law.predict(size=1e9, tokens=2e10)
        law.verdict(size=1e9, tokens=2e10, lr=1e-3, batch=1e6, incumbent=2.0)
        law.describe()
        return all(math.isfinite(v) for e in (p.lr, p.batch, p.loss) for v in (e.value, e.low, e.high))

    for _ in range(count):
        place, junk = draw.choice(found), draw.choice(JUNK)
        text = damaged(whole, place, junk)
        if draw.random() < 0.1:
            text = text[: draw.randrange(len(text))]
        counted.count(f"{place} {junk!r:.20}", lambda text=text: answered(text))  # type: ignore[misc]
    return counted


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place within JSON values."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield (*at, key)
        yield from places(child, (*at, key))


def damaged(data: Any, place: tuple[str | int, ...], junk: Any) -> str:
    """The JSON text with junk at a place."""
    out = json.loads(json.dumps(data))
    inner = out
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    return json.dumps(out)


def tables(seed: int, count: int = 300) -> Counted:
    """Trial tables with junk in their cells and heads, cut short, compressed, renamed."""
    import gzip

    from metaopt_hpo.trials.table import TrialTable

    draw, counted = random.Random(seed), Counted("table")
    head = ["size", "tokens", "batch", "lr", "loss", "seed", "state"]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            rows: list[list[Any]] = [
                [10 ** (6 + k % 3), 1e8, 1e4, 10 ** (-2 - k % 4), 2 + 0.1 * k, k, "complete"]
                for k in range(12)
            ]
            for _ in range(draw.randrange(1, 4)):
                rows[draw.randrange(12)][draw.randrange(7)] = draw.choice(JUNK)
            names = list(head)
            if draw.random() < 0.2:
                names[draw.randrange(7)] = draw.choice(["", "size", "lr ", "\x00", "Größe", "loss\n"])
            kind = draw.choice(["csv", "jsonl", "json", "csv.gz", "parquet", "tsv"])
            objects = [dict(zip(names, row, strict=True)) for row in rows]
            if kind == "json":
                data = json.dumps(objects).encode()
            elif kind == "jsonl":
                data = "\n".join(json.dumps(o) for o in objects).encode()
            else:
                separator = "\t" if kind == "tsv" else ","
                data = "\n".join(separator.join(str(v) for v in row) for row in [names, *rows]).encode()
                data = gzip.compress(data) if kind == "csv.gz" else data
            how = draw.random()
            if how < 0.15:
                data = data[: draw.randrange(len(data))]
            elif how < 0.3:
                broken = bytearray(data)
                broken[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                data = bytes(broken)
            elif how < 0.35:
                data = b"[" * 100_000 if kind.startswith("json") else data * 3
            file = Path(folder) / f"t{i}.{kind}"
            file.write_bytes(data)

            def read(file: Path = file) -> bool:
                return len(TrialTable.read(file)) > 0

            counted.count(f"{kind} {data[:60]!r}", read)
    return counted


def arguments(seed: int, count: int = 200) -> Counted:
    """Command lines with damaged values: an exit code other than 0 and a line or two on standard error, never NaN."""
    from metaopt_hpo.scaling import library

    draw, counted = random.Random(seed), Counted("command line")
    junk = [
        "",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e308",
        "1e-320",
        "x",
        "1,2",
        "\x01",
        "1e999",
        "'",
        "--",
        "../..",
        "9" * 400,
    ]
    with tempfile.TemporaryDirectory() as folder:
        law = Path(folder) / "law.json"
        library.prior("fitted-step-law").to_json(law)
        shapes = [
            ["predict", str(law), "--size", "1e9", "--tokens", "2e10", "--batch", "1e5"],
            ["laws", "step-law", "--size", "1e9", "--tokens", "2e10"],
            ["laws", "mup-adam", "--size", "1e9", "--tokens", "2e10", "--anchor", "1e8,1e9,1e-3"],
            ["verify-rule", "lr ~ D^-0.32", "--noise-exponent", "0.5"],
            [
                "compare",
                "regression",
                "--widths",
                "8",
                "--steps",
                "16",
                "--runs",
                "1",
                "--lr",
                "1e-3:1e-1",
                "--out",
                folder,
            ],
            ["report", folder],
            ["fit", str(law), "--size", "1"],
        ]
        for _ in range(count):
            shape = list(draw.choice(shapes))
            shape[draw.randrange(1, len(shape))] = draw.choice(junk)
            if shape[0] == "compare":
                shape = [*shape, "--methods", "nothing"]  # nothing is to be trained here
            counted.count(" ".join(shape)[:100], lambda shape=shape: said(shape))  # type: ignore[misc]
    return counted


def said(command: list[str]) -> bool:
    """Whether a command ended as it should."""
    from metaopt_hpo.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["metaopt-hpo", *command]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as error:
        code = error.code
    finally:
        sys.argv = before
    if code in (0, None):
        return "nan" not in out.getvalue().lower().split() and "inf" not in out.getvalue().lower().split()
    return "Traceback" not in err.getvalue() and len(err.getvalue()) > 0


def trials(seed: int, count: int = 60) -> Counted:
    """Hostile trials in a study, finished and running: asking and reporting go on, in two workers alike."""
    import optuna
    from optuna.distributions import FloatDistribution

    from metaopt_hpo_optuna import ScalingLawPruner, ScalingLawSampler

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    draw, counted = random.Random(seed), Counted("hostile trial in a study")
    space = {"lr": FloatDistribution(1e-4, 1e-1, log=True)}
    keys = ("size", "tokens", "batch", "metaopt:record", "metaopt:flops_per_token", "strategy", "tuning")
    record = {"size": -1, "tokens": 1, "batch": 1, "lr": 1, "loss": 1, "state": "complete"}

    def asked(junk: dict[str, Any], running: bool, step: int) -> bool:
        storage = optuna.storages.InMemoryStorage()

        def worker() -> float:
            study = optuna.create_study(
                study_name="s",
                storage=storage,
                load_if_exists=True,
                sampler=ScalingLawSampler(seed=0),
                pruner=ScalingLawPruner(),
            )
            if not study.trials:
                for n in (1e6, 4e6, 16e6):
                    for k in range(5):
                        lr = 5e-4 * 100 ** (k / 4)
                        good = {"size": n, "tokens": 20 * n, "batch": 32.0}
                        study.add_trial(
                            optuna.create_trial(
                                value=2 + math.log(lr / 0.01) ** 2 / 50,
                                params={"lr": lr},
                                distributions=space,
                                user_attrs=good,
                            )
                        )
                state = optuna.trial.TrialState.RUNNING if running else optuna.trial.TrialState.COMPLETE
                study.add_trial(
                    optuna.create_trial(
                        state=state,
                        value=None if running else 2.0,
                        params={"lr": 0.01},
                        distributions=space,
                        user_attrs=junk,
                        intermediate_values={step: 2.5},
                    )
                )
            trial = study.ask()
            for name, value in {"size": 16e6, "tokens": 320e6, "batch": 32.0}.items():
                trial.set_user_attr(name, value)
            lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
            trial.report(3.0, 10**7)
            trial.should_prune()
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return lr

        return all(1e-4 <= worker() <= 1e-1 for _ in range(2))

    for _ in range(count):
        junk: dict[str, Any] = {"size": 1e6, "tokens": 2e7, "batch": 32.0}
        for _ in range(draw.randrange(1, 3)):
            key = draw.choice(keys)
            value = draw.choice(JUNK)
            if key == "metaopt:record":
                value = (
                    {**record, draw.choice(list(record)): draw.choice(JUNK)} if draw.random() < 0.7 else value
                )
            junk[key] = value
        running, step = draw.random() < 0.5, draw.choice([0, 1, 10**6, 2**31 - 1])
        counted.count(f"{junk!r:.100}", lambda j=junk, r=running, s=step: asked(j, r, s))  # type: ignore[misc]
    return counted
