"""From a target and a budget to an ordered list of pilots with what each is expected to cost and to teach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from metaopt_hpo.plan import members as sizes_of
from metaopt_hpo.plan.budget import parse_budget
from metaopt_hpo.plan.costs import Budget, Cost, Hardware, PlanError
from metaopt_hpo.plan.knowledge import Knowledge, Run
from metaopt_hpo.plan.lending import base_from
from metaopt_hpo.plan.members import Member
from metaopt_hpo.plan.model import LAW_LR, SELF_TUNING, Pilot, Plan, Target, Uncertainty, Vary
from metaopt_hpo.plan.sequence import MIN_STEPS, Cell, Option, options
from metaopt_hpo.plan.words import in_words, number, percent, short
from metaopt_hpo.scaling.base.sources import base_of

BASE = "fitted-step-law"
"""What strength is borrowed from unless said otherwise: laws of decoder-only language models share exponents."""

BASE_FROM = 1e7
"""Smallest target, parameters, that borrows from it: its runs have 60 M to 430 M."""

LENGTHS = (1 / 3, 1.0, 3.0)
"""Tokens a parameter of pilots, in the target's own."""

STEP_LAW_BATCH = (0.58, 0.571)
"""Batch of pilots where none is given, tokens: 0.58·D^0.571 (Step Law), as a power of two."""

BEYOND = 4
"""Blocks beyond those that pay that are still listed where the budget allows them."""


@dataclass(frozen=True)
class Planner:
    """A target and what may vary, before a budget is named: plans for any budget share one sequence of pilots."""

    target: Target
    vary: Vary
    hardware: Hardware
    workload: str
    members: tuple[Member, ...]
    base: tuple[str, ...]
    options_of_workload: tuple[tuple[str, str], ...] = ()
    found: bool = True
    """Whether the workload can run MetaOptimize."""

    @classmethod
    def of(
        cls,
        *,
        target: float | str,
        tokens: float | str,
        hardware: Hardware,
        workload: str,
        schedule: str,
        batch: float | None,
        sizes: Sequence[float] | None,
        widths: Sequence[int] | None,
        tokens_per_parameter: Sequence[float] | None,
        batches: Sequence[float] | None,
        lr: tuple[float, float],
        seeds: int,
        base: str | Sequence[str] | None,
        workload_options: Mapping[str, str] | None = None,
    ) -> Planner:
        """Arguments as `plan`."""
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds!r}")
        size, width = sizes_of.target_size(target, workload)
        goal = Target(size=size, tokens=number(tokens, "tokens"), schedule=schedule, batch=batch, width=width)
        given = {k: str(v) for k, v in (workload_options or {}).items()}
        finds = True
        if workload and not sizes_of.built_in(workload):
            if sizes is not None and widths is not None:
                pairs = zip(widths, sizes_of.given(sizes, widths), strict=True)
                given.setdefault("sizes", ",".join(f"{w}:{m.size:.17g}" for w, m in pairs))
            if batch is not None:
                given.setdefault("batch", f"{batch:.17g}")
            goal, found, finds = sizes_of.of_job(workload, given, goal)
        elif sizes_of.built_in(workload):
            if sizes is not None:
                raise PlanError(
                    f"sizes of workload {workload} are set by its widths: give widths=… instead of sizes=…"
                )
            goal, found = sizes_of.of_workload(workload, goal, widths or ())
        elif sizes is not None:
            found = sizes_of.given(sizes, widths or ())
        elif widths is not None:
            raise PlanError("widths=… needs sizes=…, the parameters of each width")
        else:
            found = sizes_of.ladder(goal)
        if goal.batch is not None and goal.batch > goal.tokens:
            raise PlanError(
                f"the target's {goal.tokens:.4g} tokens are less than one step of {goal.batch:.4g}: give more tokens, "
                "or a smaller batch"
            )
        large = [m for m in found if m.size >= goal.size]
        if large:
            raise PlanError(
                f"the target has {goal.size:.4g} parameters and is no larger than its pilot of {large[0].size:.4g}: "
                "give smaller sizes, or a larger target"
            )
        if not found:
            raise PlanError(
                f"there is no size below the target's {goal.size:.4g} parameters to run pilots at"
            )
        own = goal.tokens / goal.size
        vary = Vary(
            sizes=tuple(m.size for m in found),
            widths=tuple(m.width for m in found if m.width is not None),
            tokens_per_parameter=tuple(
                sorted(tokens_per_parameter) if tokens_per_parameter else (own * f for f in LENGTHS)
            ),
            batches=tuple(sorted(batches or ())),
            lr=lr,
            seeds=tuple(range(seeds)),
        )
        if base is None:
            base = [BASE] if goal.size >= BASE_FROM else []
        names = (base,) if isinstance(base, str) else tuple(base)
        return cls(goal, vary, hardware, workload, found, names, tuple(given.items()), finds)

    @classmethod
    def again(cls, plan: Plan) -> Planner:
        """From a plan, so that another budget can be asked about."""
        target, vary = plan.target, plan.vary
        finds = True
        if plan.workload and not sizes_of.built_in(plan.workload):
            target, found, finds = sizes_of.of_job(plan.workload, plan.workload_options, target)
        elif sizes_of.built_in(plan.workload):
            target, found = sizes_of.of_workload(plan.workload, target, vary.widths)
        else:
            found = sizes_of.given(vary.sizes, vary.widths)
        options = tuple(plan.workload_options.items())
        return cls(target, vary, plan.hardware, plan.workload, found, plan.base, options, finds)

    @cached_property
    def knowledge(self) -> Knowledge:
        """Before any pilot."""
        given = self.target.batch is not None
        lent = base_of(base_from(self.base)) if self.base else None
        return Knowledge(self.target.size, self.target.tokens, lr=self.vary.lr, batch_given=given, base=lent)

    @cached_property
    def cells(self) -> list[Cell]:
        """What may be run: lengths of each size, batches of each length."""
        out = []
        for m in self.members:
            least = MIN_STEPS * (self.target.batch or m.batch or 0.0)
            lengths = [
                min(max(r * m.size, least * 2**i), self.target.tokens)
                for i, r in enumerate(self.vary.tokens_per_parameter)
            ]
            for tokens in sorted({float(f"{t:.3g}") for t in lengths}):
                out.append(Cell(m.size, tokens, self._batches(tokens)))
        return out

    def _batches(self, tokens: float) -> tuple[float, ...]:
        if self.target.batch is not None:
            return (self.target.batch,)
        usual = min(STEP_LAW_BATCH[0] * tokens ** STEP_LAW_BATCH[1], tokens / MIN_STEPS)
        if self.vary.batches:
            near = sorted(self.vary.batches, key=lambda b: abs(math.log(b / usual)))
            return tuple(b for b in near[:3] if b <= tokens / MIN_STEPS) or (near[0],)
        middle = 2.0 ** max(0, math.floor(math.log2(usual)))
        return tuple(b for b in (middle, middle / 2.0, middle * 2.0) if b >= 1)

    def cost(self, run: Run) -> Cost:
        """Of one run."""
        member = next(m for m in self.members if m.size == run.size)
        tokens = math.ceil(run.tokens / run.batch) * run.batch
        return self.hardware.cost((member.flops_per_token or 6.0 * run.size) * tokens, tokens)

    @cached_property
    def options(self) -> list[Option]:
        """All that could be bought before the target itself; no budget changes it."""
        return options(
            self.cells,
            self.knowledge,
            schedule=self.target.schedule,
            cost=self.cost,
            target_flops=self.target.flops,
            seeds=len(self.vary.seeds),
            found=self.found,
        )

    @cached_property
    def target_cost(self) -> Cost:
        """Of the target run."""
        return self.hardware.cost(self.target.flops, self.target.tokens)

    def plan(self, budget: float | str | Budget) -> Plan:
        """The plan for a budget.

        Raises:
            PlanError: it is too small for any pilot.
        """
        limit = parse_budget(budget, self.hardware)
        most = limit.amount * (1 + 1e-9)
        within = [o for o in self.options if limit.spent(o.cost, self.target_cost) <= most]
        if not within:
            raise PlanError(self._too_small(limit))
        best = min(within, key=lambda o: (o.total(self.target.flops), o.cost.flops, o.design))
        further = [o for o in within if o.design == best.design and o.cost.flops > best.cost.flops]
        beyond = list(further[min(len(further), BEYOND) - 1].runs) if further else []
        for run in best.runs:
            if run in beyond:
                beyond.remove(run)
        while beyond and limit.spent(self._total([*best.runs, *beyond]), self.target_cost) > most:
            beyond.pop()
        return self._plan(limit, best.runs, beyond)

    def _total(self, runs: Sequence[Run]) -> Cost:
        return sum(map(self.cost, runs), Cost())

    def reaching(self, goal: Uncertainty, text: str) -> Plan:
        """The cheapest plan after which nothing is less known than `goal` says; infinite where it does not matter.

        Raises:
            PlanError: no pilots below the target's own cost reach it.
        """
        names = ("lr", "batch", "weight_decay", "loss")

        def left(o: Option) -> float:
            return max(float(getattr(o.known, n) / getattr(goal, n)) for n in names)

        found = [o for o in self.options if left(o) <= 1.0]
        if not found:
            if not self.options:
                raise PlanError(
                    "no pilot teaches anything of this target: give smaller sizes, or a wider range of lr"
                )
            best = min(self.options, key=left)
            reached = ", ".join(f"{n} {percent(getattr(best.known, n))}" for n in names)
            raise PlanError(f"no pilots below the target's cost reach {text}; the best leave {reached}")
        best = min(found, key=lambda o: (o.cost.flops, o.design))
        limit = Budget(kind="flops", amount=best.cost.flops, text=f"{best.cost.flops:.3g} FLOPs for {text}")
        return self._plan(limit, best.runs, ())

    def _plan(self, limit: Budget, worth: Sequence[Run], extra: Sequence[Run]) -> Plan:
        return Plan(
            target=self.target,
            vary=self.vary,
            budget=limit,
            hardware=self.hardware,
            workload=self.workload,
            pilots=self._pilots(worth, extra),
            before=self.knowledge.after(()),
            base=self.base,
            workload_options=dict(self.options_of_workload),
        )

    def _too_small(self, limit: Budget) -> str:
        given = limit.text or in_words(limit.amount, limit)
        if not self.options:
            return "no pilot teaches anything of this target: give smaller sizes, or a wider range of lr"
        least = min(limit.spent(o.cost, self.target_cost) for o in self.options)
        return (
            f"a budget of {given} is too small for any pilot: the smallest takes {in_words(least, limit)}; "
            "give more, or smaller sizes"
        )

    def _pilots(self, worth: Sequence[Run], extra: Sequence[Run]) -> tuple[Pilot, ...]:
        """Cheap ones first, runs that find their own lr before those of a schedule; then those that no longer pay."""
        order = sorted(worth, key=lambda r: (r.strategy != SELF_TUNING, self.cost(r).flops))
        order.sort(key=lambda r: self.cost(r).flops)
        done: list[Run] = []
        out: list[Pilot] = []
        seen: dict[Run, int] = {}
        for run in [*order, *extra]:
            done.append(run)
            seed = self.vary.seeds[seen.get(run, 0) % len(self.vary.seeds)]
            seen[run] = seen.get(run, 0) + 1
            member = next(m for m in self.members if m.size == run.size)
            out.append(
                Pilot(
                    name=f"{len(out) + 1:02d}-{short(run.size)}-{short(run.tokens)}-{run.strategy}",
                    size=run.size,
                    width=member.width,
                    tokens=run.tokens,
                    batch=run.batch,
                    strategy=run.strategy,
                    lr=None if run.strategy == SELF_TUNING else LAW_LR,
                    seed=seed,
                    cost=self.cost(run),
                    expected=self.knowledge.after(done),
                    pays=len(out) < len(order),
                )
            )
        return tuple(out)
