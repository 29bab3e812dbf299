"""Any training program as a workload: a command line with placeholders, or a Python file with a few functions.

No import of ours is needed in either. A command line is split as a shell would split it, and no shell runs it: each
placeholder is replaced inside its own argument, so that no value can become a second argument or a command.

    torchrun train.py --width {width} --lr {lr} --steps {steps}

A Python file defines `sizes()`, `train(config)` and, where 6·N·D is not the cost, `flops(config)`; see `job_runner`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from metaopt_hpo.workloads import job_runner
from metaopt_hpo.workloads.placeholders import PLACEHOLDERS, JobError, fill, names_in, plain

SHELL = ("|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "2>", "2>&1", "&>")
"""Arguments that only a shell understands."""

OPTIONS = ("sizes", "batch", "knob", "losses", "metric", "timeout", "retries", "sequence_length", "cwd")
"""What a plan's `workload_options` say of a program; every other one is a placeholder of the user's own."""


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
    def shares_losses(self) -> bool:
        """Whether all runs write their losses to one place."""
        return Path(self.losses).is_absolute() and not names_in(self.losses)

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
        numbers = {k: plain(v) for k, v in given.items()}
        if self.sequence_length:
            numbers["sequences"] = plain(numbers["batch"] / self.sequence_length)
        knob = self.knob_of(given["size"])
        return {**self.values, **numbers, self.knob: plain(knob)}

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
        return [fill(part, settings) for part in self.template]

    def losses_at(self, settings: Mapping[str, Any], out: Path) -> Path | None:
        """Where the run's losses are, where the user has said so."""
        return out / fill(self.losses, settings) if self.losses else None

    def variables(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Environment variables of one run."""
        return {k: fill(v, settings) for k, v in self.environment.items()}

    # -- checks, before anything starts

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(n for part in self.template for n in names_in(part))

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
            for name in names_in(text):
                if name not in self._known:
                    self._unknown(name)
            sample: dict[str, Any] = {**dict.fromkeys(self._known, 1), **self.values}
            sample |= {"strategy": "wsd", "out": "out", "lr": 1e-3}
            try:
                fill(text, sample)
            except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
                raise JobError(
                    f"{text!r} cannot be filled in ({error}); write a brace that is meant as {{{{ or }}}}"
                ) from None
        if self.shares_losses and not Path(self.losses).suffix:
            raise JobError(
                f"losses names one folder, {self.losses}, for all runs of job {self.name!r}, where they cannot be "
                "told apart: name one below {out}"
            )
        if self.file is None:
            self._check_command()
            self._check_used()

    def _check_used(self) -> None:
        texts = (*self.template, self.losses, *self.environment.values())
        used = {n for text in texts for n in names_in(text)}
        for name in self.values:
            if name not in used:
                near = difflib.get_close_matches(name, OPTIONS, n=1)
                hint = (
                    f"did you mean {near[0]}?"
                    if near
                    else f"write {{{name}}} where it belongs, or leave it out"
                )
                raise JobError(f"option {name!r} is used nowhere in the command of job {self.name!r}; {hint}")

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
        if re.match(r"[A-Za-z_]\w*=", program):
            raise JobError(
                f"the command begins with {program!r}, which only a shell understands, and no shell runs it; put env "
                "in front of it"
            )
        if not names_in(program):
            where = self.cwd or Path.cwd()
            found = shutil.which(program) or (os.sep in program and shutil.which(str(where / program)))
            if not found:
                raise JobError(f"there is no program {program!r}; give its path, or install it")
        scripts = [p for p in self.template[1:3] if p.endswith((".py", ".sh")) and not names_in(p)]
        for script in scripts:
            if not (self.cwd or Path.cwd()).joinpath(script).exists():
                raise JobError(
                    f"there is no file {script!r} in {self.cwd or Path.cwd()}, which the command names"
                )
