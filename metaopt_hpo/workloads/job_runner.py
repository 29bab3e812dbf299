"""Runs a Python job in a process of its own: `python -P job_runner.py my_job.py config.json`.

The file needs no import of ours. It defines

    BATCH = 16_384                         # tokens per optimizer step
    def sizes():                           # what can be trained: width → trainable non-embedding parameters
        return {64: 98_304, 128: 393_216}
    def train(config):                     # yields (step, held-out loss) now and then, and at the end
        ...
    def flops(config):                     # training FLOPs of the whole run, where 6·N·D is not right
        ...

`config` holds `size`, `width` (or whatever `KNOB` names), `tokens`, `batch`, `steps`, `lr`, `seed`, `strategy`,
`options`, `out` (a folder of the run's own: checkpoints there are found again when the run goes on), and
`config.optimizer(optimizer, model)`, which sets the learning rate of any torch optimizer as the plan wants it.
Only the standard library is imported before the job.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

LOSSES = "losses.jsonl"
"""File in the run's folder to which its losses are written."""

FOUND = "found.json"
"""File in the run's folder that holds the step size which a run of MetaOptimize settled on."""

ASK_SECONDS = 300.0
"""A job's file is imported to ask for its sizes: torch and data take their time."""


class Config(SimpleNamespace):
    """What one run is to be."""

    def optimizer(self, optimizer: Any, model: Any = None) -> Any:
        """The run of this optimizer: call `.step(loss)` in the place of `optimizer.step()`.

        Its learning rate is found by MetaOptimize, or follows the schedule with peak `config.lr`; groups with
        different lr keep their ratios.
        """
        from metaopt_hpo.strategies.over import over

        run = over(
            optimizer, self.strategy, lr=self.lr, horizon=self.steps, model=model, options=self.options
        )
        vars(self)["_run"] = run
        return run

    def _note(self) -> None:
        """Note the step size that MetaOptimize has settled on."""
        run = vars(self).get("_run")
        found = getattr(run, "found_lr", None)
        if found is not None and found > 0:
            from metaopt_hpo.atomic import write_text

            write_text(Path(self.out) / FOUND, json.dumps({"found_lr": float(found)}))


def describe(file: Path) -> dict[str, Any]:
    """A job's sizes, batch and knob, asked in a process of its own; {"error": sentence} where that fails, {"wrong":
    sentence} where a function of it cannot be called."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            done = subprocess.run(
                [sys.executable, "-P", __file__, str(file.resolve()), "--describe", str(answer)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"sizes() took longer than {ASK_SECONDS:g} s"}
        with suppress(OSError, ValueError):  # it may have ended before it answered, or while it did
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return found
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1].strip() if lines else f"it ended with exit code {done.returncode}"}


def flops(file: Path, config: dict[str, Any]) -> float:
    """What the job's `flops(config)` says, asked in a process of its own.

    Raises:
        ValueError: it fails, or says no positive number.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "config.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(config), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-P", __file__, str(file.resolve()), "--flops", str(asked), str(answer)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"flops() of {file} took longer than {ASK_SECONDS:g} s") from None
        if not answer.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise ValueError(f"flops() of {file} failed: {lines[-1].strip() if lines else done.returncode}")
        value = float(json.loads(answer.read_text(encoding="utf-8")))
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"flops() of {file} must be a positive number, got {value!r}")
    return value


def _load(file: str) -> ModuleType:
    path = Path(file)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("job", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["job"] = module
    spec.loader.exec_module(module)
    return module


def _ask(file: str, answer: str) -> None:
    job = _load(file)
    if wrong := _wrong(job):
        Path(answer).write_text(json.dumps({"wrong": wrong}), encoding="utf-8")
        return
    sizes = job.sizes()
    said = {
        "sizes": {str(k): v if isinstance(v, bool) else float(v) for k, v in dict(sizes).items()},
        "batch": getattr(job, "BATCH", None),
        "knob": getattr(job, "KNOB", None),
    }
    Path(answer).write_text(json.dumps(said), encoding="utf-8")


def _wrong(job: ModuleType) -> str:
    """What of the job's functions cannot be called as it will be; empty where all can."""
    for name, given in (("sizes", ()), ("train", ("config",)), ("flops", ("config",))):
        function = getattr(job, name, None)
        if function is None:
            continue
        if not callable(function):
            return f"{name} is no function"
        with suppress(ValueError):  # of a function in C nobody knows
            signature = inspect.signature(function)
            try:
                signature.bind(*given)
            except TypeError as error:
                called = f"{name}({', '.join(given)})"
                return f"{name}{signature} cannot be called as {called}: {error}"
    return ""


def _read(path: str) -> Config:
    return Config(**json.loads(Path(path).read_text(encoding="utf-8")))


def _train(file: str, config: str) -> None:
    given = _read(config)
    job = _load(file)
    with (Path(given.out) / LOSSES).open("a", encoding="utf-8") as out:
        for said in job.train(given):
            out.write(json.dumps(_row(said)) + "\n")
            out.flush()
            given._note()


def _row(said: Any) -> dict[str, Any]:
    """A yielded loss, (step, loss) or mapping as a row."""
    if isinstance(said, dict):
        return {str(k): float(v) for k, v in said.items()}
    if isinstance(said, (tuple, list)):
        if len(said) != 2:
            raise ValueError(f"train(config) must yield a loss, (step, loss) or a dictionary, got {said!r}")
        return {"step": float(said[0]), "val_loss": float(said[1])}
    return {"val_loss": float(said)}


def main(argv: list[str]) -> None:
    """Train, or answer a question about the job."""
    if argv[1] == "--describe":
        _ask(argv[0], argv[2])
    elif argv[1] == "--flops":
        value = float(_load(argv[0]).flops(_read(argv[2])))
        Path(argv[3]).write_text(json.dumps(value), encoding="utf-8")
    else:
        _train(argv[0], argv[1])


if __name__ == "__main__":
    main(sys.argv[1:])
