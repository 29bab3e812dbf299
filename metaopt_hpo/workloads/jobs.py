"""Jobs from words: a command line with placeholders, a Python file, or what a user typed for either."""

from __future__ import annotations

import ast
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt_hpo.workloads import job_runner
from metaopt_hpo.workloads.command import Job
from metaopt_hpo.workloads.placeholders import JobError

FUNCTIONS = ("sizes", "train", "flops")
"""What a Python job may define; the first two it must."""

NUMBERS = {
    "timeout": (float, "a number of seconds"),
    "retries": (int, "a whole number"),
    "sequence_length": (float, "a number of tokens"),
    "batch": (float, "a number of tokens"),
}
"""Options that are numbers, and what each is to be."""


def command_job(
    command: str, *, sizes: Mapping[Any, float], batch: float, name: str = "", **options: Any
) -> Job:
    """A command line as a job; checked at once, nothing is started.

    Args:
        command: the line, e.g. `"python train.py --width {width} --lr {lr} --steps {steps}"`.
        sizes: value of `{width}` → trainable non-embedding parameters.
        batch: tokens per optimizer step.
        name: what it is called in tables (default: the script's name).
        options: of `Job`.

    Raises:
        JobError: an unknown or missing placeholder, no such program, or a line that needs a shell.
    """
    try:
        template = tuple(shlex.split(command))
    except ValueError as error:
        raise JobError(f"the command cannot be split ({error}): {command!r}") from None
    script = next((p for p in template if p.endswith((".py", ".sh"))), template[0] if template else "job")
    return Job(
        name=name or Path(script).stem,
        sizes=_ascending(sizes),
        batch=_tokens(batch, "a command needs its batch"),
        template=template,
        **options,
    )


def file_job(path: str | os.PathLike[str], *, name: str = "", **options: Any) -> Job:
    """A Python file with `sizes()` and `train(config)` as a job. The file is run once, to ask for its sizes.

    Args:
        path: the file. It may define `BATCH`, tokens per step, and `KNOB`, what sets the size (default "width").
        name: what it is called in tables (default: the file's name).
        options: of `Job`; `batch` where the file does not say it.

    Raises:
        JobError: there is no such file, it does not run, or it lacks a function.
    """
    file = Path(path)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise JobError(f"job {file} cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise JobError(f"job {file} is not Python: {error or type(error).__name__}") from None
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    defined |= {
        t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    defined |= {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    for function in FUNCTIONS[:2]:
        if function not in defined:
            raise JobError(
                f"job {file} defines no {function}(); it needs sizes(), which maps {{width}} to parameters, and "
                "train(config), which yields losses"
            )
    said = job_runner.describe(file)
    if "wrong" in said:
        raise JobError(f"job {file} cannot be run: {said['wrong']}")
    if "error" in said:
        raise JobError(f"job {file} cannot be asked for its sizes: {said['error']}")
    batch = options.pop("batch", None) or said.get("batch")
    if not batch:
        raise JobError(
            f"job {file} does not say its batch; write BATCH = tokens per optimizer step, or give batch="
        )
    return Job(
        name=name or file.stem,
        sizes=_ascending(said.get("sizes")),
        batch=_tokens(batch, f"job {file} must say its BATCH"),
        file=file,
        knob=str(said.get("knob") or "width"),
        own_flops="flops" in defined,
        **options,
    )


def parse_sizes(text: str) -> dict[str, float]:
    """Sizes as written on a command line: `128:393216,256:1.6e6`.

    Raises:
        JobError: something else.
    """
    out: dict[str, float] = {}
    for part in text.split(","):
        knob, colon, size = part.partition(":")
        try:
            if not colon:
                raise ValueError
            parameters = float(size)
        except ValueError:
            raise JobError(
                f"sizes are written WIDTH:PARAMETERS,…, e.g. 128:393216,256:1572864; got {part!r}"
            ) from None
        if knob.strip() in out:
            raise JobError(f"sizes name {knob.strip()} twice, in {text!r}; give each width once")
        out[knob.strip()] = parameters
    return out


def _tokens(batch: Any, needed: str) -> float:
    try:
        return _number(batch)
    except (TypeError, ValueError, OverflowError):
        raise JobError(f"{needed} as a number, got {batch!r:.60}") from None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("true and false are no numbers")
    return float(value)


def _ascending(sizes: Any) -> dict[str, float]:
    try:
        return {str(k): _number(v) for k, v in sorted(sizes.items(), key=lambda kv: float(kv[1]))}
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise JobError(
            f"sizes map the size's knob to parameters, e.g. {{128: 393216}}; got {sizes!r:.100}"
        ) from None


def job_of(workload: str, options: Mapping[str, str], folder: Path) -> Job:
    """The job that a command line's words describe: a Python file, or a command with placeholders.

    Args:
        workload: path of a Python file, or the command.
        options: `sizes` ("128:4e5,256:1.6e6"), `batch`, `knob`, `losses`, `metric`, `timeout`, `retries`,
            `sequence_length`, `cwd`; every other one is a placeholder of the user's own.
        folder: where the runs' folders are made.

    Raises:
        JobError: it cannot be run as described.
    """
    left = dict(options)
    given: dict[str, Any] = {"folder": folder}
    for name, (kind, wanted) in NUMBERS.items():
        if name in left:
            text = left.pop(name)
            try:
                given[name] = kind(text)
            except ValueError:
                raise JobError(f"{name} must be {wanted}, got {text!r}") from None
    for name in ("knob", "losses", "metric"):
        if name in left:
            given[name] = left.pop(name)
    if "cwd" in left:
        given["cwd"] = Path(left.pop("cwd"))
    sizes = left.pop("sizes", None)
    if is_file(workload):
        return file_job(workload.strip(), **given, values=left)
    if sizes is None or "batch" not in given:
        raise JobError(
            "a command needs its sizes (sizes=WIDTH:PARAMETERS,…) and its batch in tokens per step (batch=…)"
        )
    return command_job(workload, sizes=parse_sizes(sizes), values=left, **given)


def is_file(workload: str) -> bool:
    """Whether a workload's words name a Python file."""
    text = workload.strip()
    return text.endswith(".py") and (len(text.split()) == 1 or Path(text).is_file())
