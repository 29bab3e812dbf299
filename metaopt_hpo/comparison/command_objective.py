"""CommandObjective: trials by running somebody's training program."""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from metaopt_hpo.atomic import write_text
from metaopt_hpo.comparison.objective import Configuration, ObjectiveError, Report, no_report
from metaopt_hpo.trials.record import TrialRecord, report_grid
from metaopt_hpo.trials.schema import TableError
from metaopt_hpo.workloads import job_runner, program, reported
from metaopt_hpo.workloads.command import Job
from metaopt_hpo.workloads.earlier import Earlier
from metaopt_hpo.workloads.placeholders import JobError
from metaopt_hpo.workloads.program_outcome import DIVERGED, curve_of, on_grid, verdict

SETTINGS = "settings.json"
"""In a run's folder: what it was started with."""

OUT = "out"
"""In a run's folder: the program's own folder, `{out}`."""


class CommandObjective:
    """Run a job; see `workloads.command`.

    Args:
        job: the program.
    """

    def __init__(self, job: Job) -> None:
        self.name = job.name
        self.job = job

    @property
    def sizes(self) -> tuple[float, ...]:
        """Sizes there are, ascending."""
        return tuple(self.job.sizes.values())

    def cost(self, configuration: Configuration) -> float:
        """What the job's `flops` says, else 6·N·D of whole steps."""
        return _steps(configuration) * configuration.batch * self._per_token(configuration)

    def run(self, configuration: Configuration, report: Report = no_report) -> TrialRecord:
        """Run the program in a new folder.

        Raises:
            ObjectiveError: no such size, or the program ended well without having said a loss.
        """
        return self._run(configuration, report, self._new_folder(configuration))

    def run_saved(self, configuration: Configuration, report: Report, checkpoint: Path) -> TrialRecord:
        """Run as `run`, in the folder of the run that another process began: `{out}` is as it left it."""
        folder: Path | None = None
        if checkpoint.exists():
            try:
                folder = Path(json.loads(checkpoint.read_text(encoding="utf-8"))["folder"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                folder = None
        if folder is None or not folder.is_dir():
            folder = self._new_folder(configuration)
            write_text(checkpoint, json.dumps({"folder": str(folder)}))
        return self._run(configuration, report, folder)

    # -- one run

    def _run(self, c: Configuration, report: Report, folder: Path) -> TrialRecord:
        job = self.job
        out = (folder / OUT).resolve()
        out.mkdir(parents=True, exist_ok=True)
        settings = self._settings(c, out)
        config = folder.resolve() / SETTINGS
        options = {"options": dict(c.options)} if job.file is not None else {}
        write_text(config, json.dumps({**settings, **options}, indent=2))
        if job.file is not None:
            losses: Path | None = out / job_runner.LOSSES
        else:
            losses = job.losses_at(settings, out)
        own = losses is None or losses.is_relative_to(out)
        earlier = None if own or losses is None else Earlier.of(losses)
        look = _Look(self, c, report, folder, losses, earlier)
        seconds, attempt = 0.0, 0
        while True:
            ended = program.run(
                job.argv(settings, config),
                folder,
                cwd=job.cwd,
                environment={**job.variables(settings), "METAOPT_HPO_OUT": str(out)},
                timeout=job.timeout,
                look=look,
            )
            seconds += ended.seconds
            found = look.found(strict=True)
            again = ended.code != 0 and not (
                ended.stopped or ended.timed_out or ended.not_finite or ended.code == 127
            )
            if again and ended.out_of_memory and ended.code != 137:  # it would do so again; a kill may not
                again = False
            if not again or attempt >= job.retries or (found and not math.isfinite(found.final)):
                break
            attempt += 1
        return self._record(c, folder, ended, found, seconds, attempt)

    def _record(
        self,
        c: Configuration,
        folder: Path,
        ended: program.Ended,
        found: reported.Reported | None,
        seconds: float,
        retried: int,
    ) -> TrialRecord:
        planned = _steps(c) * c.batch
        if ended.code == 0 and found is None:
            called = f" of the name {self.job.metric!r}" if self.job.metric else ""
            others = reported.unread([folder / program.STDOUT, folder / program.STDERR])
            raise ObjectiveError(
                f"job {self.name!r} exited with 0, and no loss{called} was found in what it printed "
                f"({folder / program.STDOUT}) or wrote ({folder / OUT}); "
                + (
                    f"it says {', '.join(others[:4])}: where one is the loss, name it, e.g. metric={others[0]}"
                    if others
                    else 'print lines such as {"step": 100, "loss": 3.2}, or say where they are'
                )
            )
        curve = curve_of(found, planned, ended.code == 0)
        seen = curve.tokens[-1] if curve else (planned if ended.code == 0 else 0.0)
        loss = found.final if found else math.nan
        state, reason = verdict(ended, found, seen, planned, c.batch, self.job.timeout)
        if state in ("failed", "diverged") and retried and ended.code != 0:
            reason += f" (after {retried + 1} attempts)"
        if state == "complete":
            seen = planned
        if state == "complete" and found is not None:
            reason = found.remark
        found_lr = self._found_lr(folder)
        if state == "complete" and c.strategy == "metaoptimize" and math.isnan(found_lr):
            reason = (
                "it said no lr that it found: train through config.optimizer(…), or write {out}/found.json"
            )
        finite = on_grid(curve)
        return c.record(
            tokens=seen,
            loss=loss,
            workload=self.name,
            tuning=_tuning(c.strategy),
            state=state,
            reason=reason,
            target_tokens=planned,
            cost=self._per_token(c) * seen,
            seconds=seconds,
            params={**dict(c.options), "attempts": retried + 1, "logs": str(folder)},
            curve=finite,
            found_lr=found_lr,
        )

    def _found_lr(self, folder: Path) -> float:
        """What a run of MetaOptimize settled on, where the job runner wrote it."""
        try:
            said = json.loads((folder / OUT / job_runner.FOUND).read_text(encoding="utf-8"))
            found = float(said["found_lr"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return math.nan
        return found if 0 < found < math.inf else math.nan

    def _settings(self, c: Configuration, out: Path) -> dict[str, Any]:
        return self.job.settings(
            size=c.size,
            tokens=_steps(c) * c.batch,
            batch=c.batch,
            steps=_steps(c),
            lr=c.lr,
            seed=c.seed,
            strategy=c.strategy,
            out=str(out),
        )

    def _per_token(self, c: Configuration) -> float:
        if not self.job.own_flops or self.job.file is None:
            return 6.0 * c.size
        settings = self._settings(c, Path("."))
        total = _flops(self.job.file, json.dumps({**settings, "options": {}}), self.job.fingerprint)
        return total / (_steps(c) * c.batch)

    def _new_folder(self, c: Configuration) -> Path:
        knob = self._knob(c)
        identity = [
            self.job.fingerprint,
            c.size,
            c.tokens,
            c.batch,
            c.lr,
            c.strategy,
            sorted(c.options.items()),
            c.seed,
        ]
        short = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:6]
        base = f"{self.job.knob}{knob}-steps{_steps(c)}-{c.strategy}-lr{c.lr:.3g}-seed{c.seed}-{short}"
        number = 1
        while True:
            folder = self.job.folder / (base if number == 1 else f"{base}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
            except OSError as error:
                raise ObjectiveError(
                    f"cannot keep logs in {folder}: {error.strerror}; choose another folder"
                ) from None

    def _knob(self, c: Configuration) -> str:
        try:
            return self.job.knob_of(c.size)
        except JobError as error:
            raise ObjectiveError(str(error)) from None


class _Look:
    """Asked now and then while a program runs: passes on new losses, and says why it should end."""

    def __init__(
        self,
        objective: CommandObjective,
        c: Configuration,
        report: Report,
        folder: Path,
        losses: Path | None,
        earlier: Earlier | None,
    ) -> None:
        self._job = objective.job
        self._configuration = c
        self._report = report
        self._folder = folder
        self._losses = losses
        self._earlier = earlier
        self._grid = report_grid(max(1.0, _steps(c) * c.batch))
        self._told = 0.0

    def found(self, *, strict: bool = False) -> reported.Reported | None:
        logs = [self._folder / program.STDOUT, self._folder / program.STDERR]
        try:
            return reported.find(
                logs,
                self._folder / OUT,
                batch=self._configuration.batch,
                losses=self._losses,
                metric=self._job.metric,
                earlier=self._earlier,
            )
        except TableError as error:
            if strict:
                raise ObjectiveError(str(error)) from error
            return None

    def __call__(self) -> str | None:
        try:
            found = self.found()
        except OSError:
            return None
        if found is None:
            return None
        last = [loss for _, loss in found.points[-2:]]
        if len(last) == 2 and not any(map(math.isfinite, last)):
            return DIVERGED
        for tokens, loss in found.points:
            if math.isnan(tokens) or tokens <= self._told or not math.isfinite(loss):
                continue
            # one report for each stretch of the grid that was passed
            if any(self._told < point <= tokens for point in self._grid):
                self._told = tokens
                if reason := self._report(round(tokens), loss):
                    return reason
        return None


def _tuning(strategy: str) -> Any:
    from metaopt_hpo.strategies.registry import tuning_of

    return tuning_of(strategy)


def _steps(c: Configuration) -> int:
    return max(1, math.ceil(c.tokens / c.batch - 1e-9))


@lru_cache(maxsize=256)
def _flops(file: Path, config: str, fingerprint: str) -> float:
    try:
        return job_runner.flops(file, json.loads(config))
    except ValueError as error:
        raise ObjectiveError(str(error)) from None
