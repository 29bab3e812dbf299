"""Any training program as a workload: a command line with placeholders, or a Python file with a few functions.

No import of ours is needed in either. A command line is split as a shell would split it, and no shell runs it: each
placeholder is replaced inside its own argument, so that no value can become a second argument or a command.

    torchrun train.py --width {width} --lr {lr} --steps {steps}

A Python file defines `sizes()`, `train(config)` and, where 6·N·D is not the cost, `flops(config)`; see `job_runner`.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from metaopt_hpo.errors import MetaOptError
from metaopt_hpo.workloads import job_runner

SHELL = ("|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "2>", "2>&1", "&>")
"""Arguments that only a shell understands."""

FUNCTIONS = ("sizes", "train", "flops")
"""What a Python job may define; the first two it must."""

PLACEHOLDERS = {
    "size": "trainable non-embedding parameters",
    "tokens": "training tokens",
    "batch": "tokens per optimizer step",
    "steps": "optimizer steps",
    "sequences": "sequences per optimizer step (needs sequence_length)",
    "lr": "learning rate",
    "seed": "seed",
    "strategy": "how lr is set: wsd, cosine …, or metaoptimize, where the program can",
    "out": "a folder of the run's own, kept where the run is retried or goes on",
}
"""What a command line may name; the knob that sets the size (`width` unless said otherwise) comes on top."""


class JobError(MetaOptError):
    """A training program that cannot be run as it was described, or that says no loss."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training program: how it is called, which sizes it has, and where its losses are.

    Build one with `command_job` or `file_job`.

    Args:
        name: what it is called in tables.
        sizes: value of the size's knob → trainable non-embedding parameters, ascending.
        batch: tokens per optimizer step unless a plan says otherwise.
        template: the command line's arguments; empty for a Python file.
        file: the Python file.
        knob: the placeholder that sets the size.
        sequence_length: tokens in a sequence, for programs that count their batch in sequences.
        losses: file or folder of the losses, with placeholders, relative to `{out}`; empty: what the program prints,
            else whatever it writes into `{out}`.
        metric: name of the held-out loss; empty: the likeliest (`val_loss`, `eval/loss`, `loss` …).
        values: placeholders of the user's own.
        environment: variables, with placeholders.
        timeout: seconds a run may take; None for any.
        retries: how often a run that failed is started again.
        folder: where the runs' folders are made.
        cwd: where the program is started.
        own_flops: whether the Python file says what a run costs.
    """

    name: str
    sizes: Mapping[str, float]
    batch: float
    template: tuple[str, ...] = ()
    file: Path | None = None
    knob: str = "width"
    sequence_length: float | None = None
    losses: str = ""
    metric: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    retries: int = 1
    folder: Path = Path("results/jobs")
    cwd: Path | None = None
    own_flops: bool = False

    def __post_init__(self) -> None:
        if not self.sizes:
            raise JobError(
                f"job {self.name!r} has no sizes; name some, e.g. sizes={{128: 393216, 256: 1572864}}"
            )
        for value, size in self.sizes.items():
            if not (math.isfinite(size) and size > 0):
                raise JobError(
                    f"{self.knob} {value} of job {self.name!r} has size {size!r}; it must be positive and finite"
                )
        if len(set(self.sizes.values())) != len(self.sizes):
            raise JobError(
                f"two values of {self.knob} of job {self.name!r} have the same size; sizes must differ"
            )
        if not (math.isfinite(self.batch) and self.batch > 0):
            raise JobError(
                f"batch of job {self.name!r} must be positive, in tokens per step, got {self.batch!r}"
            )
        if self.timeout is not None and not self.timeout > 0:
            raise JobError(f"timeout must be positive, in seconds, got {self.timeout!r}")
        if self.retries < 0:
            raise JobError(f"retries must be 0 or more, got {self.retries!r}")
        self._check()

    @property
    def strategies(self) -> tuple[str, ...]:
        """What can set the learning rate: a command line that does not name `{strategy}` has its own schedule."""
        return ("wsd", "metaoptimize") if self.file is not None or "strategy" in self._named else ("own",)

    @cached_property
    def fingerprint(self) -> str:
        """Of all that a run depends on: its program, for a file the text, and how its losses are read."""
        text = json.dumps(
            [
                self.template,
                self.file.read_text(encoding="utf-8") if self.file is not None else "",
                dict(self.sizes),
                self.knob,
                self.losses,
                self.metric,
                dict(self.values),
                dict(self.environment),
            ],
            default=str,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def knob_of(self, size: float) -> str:
        """The knob's value that gives a size.

        Raises:
            JobError: none does.
        """
        for value, known in self.sizes.items():
            if math.isclose(known, size, rel_tol=1e-9):
                return value
        known_sizes = ", ".join(f"{s:g}" for s in self.sizes.values())
        raise JobError(f"job {self.name!r} has no size {size:g}; its sizes are {known_sizes}")

    def settings(self, **given: Any) -> dict[str, Any]:
        """Every placeholder's value for one run."""
        numbers = {k: _plain(v) for k, v in given.items()}
        if self.sequence_length:
            numbers["sequences"] = _plain(numbers["batch"] / self.sequence_length)
        knob = self.knob_of(given["size"])
        return {**self.values, **numbers, self.knob: _plain(knob)}

    def argv(self, settings: Mapping[str, Any], config: Path) -> list[str]:
        """The program and its arguments for one run."""
        if self.file is not None:
            return [
                sys.executable,
                "-P",
                str(Path(job_runner.__file__)),
                str(self.file.resolve()),
                str(config),
            ]
        return [_fill(part, settings) for part in self.template]

    def losses_at(self, settings: Mapping[str, Any], out: Path) -> Path | None:
        """Where the run's losses are, where the user has said so."""
        return out / _fill(self.losses, settings) if self.losses else None

    def variables(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Environment variables of one run."""
        return {k: _fill(v, settings) for k, v in self.environment.items()}

    # -- checks, before anything starts

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(n for part in self.template for n in _names(part))

    @property
    def _known(self) -> dict[str, str]:
        known = {**PLACEHOLDERS, self.knob: "sets the model's size", **dict.fromkeys(self.values, "yours")}
        if not self.sequence_length:
            del known["sequences"]
        return known

    def _check(self) -> None:
        for name in self.values:
            if name in PLACEHOLDERS or name == self.knob:
                raise JobError(f"placeholder {{{name}}} is set by the plan; give your own value another name")
        for text in (*self.template, self.losses, *self.environment.values()):
            for name in _names(text):
                if name not in self._known:
                    self._unknown(name)
            sample: dict[str, Any] = {**dict.fromkeys(self._known, 1), **self.values}
            sample |= {"strategy": "wsd", "out": "out", "lr": 1e-3}
            try:
                _fill(text, sample)
            except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
                raise JobError(
                    f"{text!r} cannot be filled in ({error}); write a brace that is meant as {{{{ or }}}}"
                ) from None
        if self.file is None:
            self._check_command()

    def _unknown(self, name: str) -> None:
        if name == "sequences":
            raise JobError("{sequences} needs sequence_length, the tokens in a sequence")
        near = difflib.get_close_matches(name, self._known, n=1)
        can = ", ".join(f"{{{known}}}" for known in self._known)
        hint = (
            f"did you mean {{{near[0]}}}?" if near else f"it can be {can}, or one of yours given as a value"
        )
        raise JobError(f"unknown placeholder {{{name}}} in job {self.name!r}; {hint}")

    def _check_command(self) -> None:
        if not self.template:
            raise JobError("the command is empty; give a program and its arguments")
        for part in self.template:
            if part in SHELL:
                raise JobError(
                    f"the command holds {part!r}, which only a shell understands, and no shell runs it; put the line "
                    "into a script and call that"
                )
        for wanted, what in (
            (("lr",), "{lr}, the learning rate"),
            ((self.knob, "size"), f"{{{self.knob}}} or {{size}}, the model's size"),
            (("steps", "tokens"), "{steps} or {tokens}, the length of a run"),
        ):
            if not any(n in self._named for n in wanted):
                raise JobError(f"the command has no place for {what}; a plan must be able to set it")
        program = self.template[0]
        if not _names(program):
            where = self.cwd or Path.cwd()
            found = shutil.which(program) or (os.sep in program and shutil.which(str(where / program)))
            if not found:
                raise JobError(f"there is no program {program!r}; give its path, or install it")
        scripts = [p for p in self.template[1:3] if p.endswith((".py", ".sh")) and not _names(p)]
        for script in scripts:
            if not (self.cwd or Path.cwd()).joinpath(script).exists():
                raise JobError(
                    f"there is no file {script!r} in {self.cwd or Path.cwd()}, which the command names"
                )


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
        batch=float(batch),
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
        tree = ast.parse(file.read_text(encoding="utf-8"))
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
    if "error" in said:
        raise JobError(f"job {file} cannot be asked for its sizes: {said['error']}")
    batch = options.pop("batch", None) or said.get("batch")
    if not batch:
        raise JobError(
            f"job {file} does not say its batch; write BATCH = tokens per optimizer step, or give batch="
        )
    try:
        tokens = float(batch)
    except (TypeError, ValueError, OverflowError):
        raise JobError(f"job {file} must say its BATCH as a number, got {batch!r:.60}") from None
    return Job(
        name=name or file.stem,
        sizes=_ascending(said.get("sizes")),
        batch=tokens,
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
            out[knob.strip()] = float(size)
        except ValueError:
            raise JobError(
                f"sizes are written WIDTH:PARAMETERS,…, e.g. 128:393216,256:1572864; got {part!r}"
            ) from None
    return out


def _ascending(sizes: Any) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in sorted(sizes.items(), key=lambda kv: float(kv[1]))}
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise JobError(
            f"sizes map the size's knob to parameters, e.g. {{128: 393216}}; got {sizes!r:.100}"
        ) from None


def _names(text: str) -> list[str]:
    try:
        return [re.split(r"[.\[]", n)[0] for _, n, _, _ in string.Formatter().parse(text) if n is not None]
    except ValueError as error:
        raise JobError(
            f"{text!r} cannot be filled in ({error}); write a brace that is meant as {{{{ or }}}}"
        ) from None


def _fill(text: str, settings: Mapping[str, Any]) -> str:
    for _, name, _, _ in string.Formatter().parse(text):
        if name is not None and not name.isidentifier():  # no attributes, no items of values
            raise ValueError(f"{{{name}}} is not a placeholder's name")
    return text.format(**settings)


def _plain(value: Any) -> Any:
    """Whole numbers as int, so that `{steps}` is 512 and not 512.0."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    return value
