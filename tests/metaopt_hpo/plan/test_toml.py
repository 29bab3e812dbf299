"""A plan survives its file, and a wrong edit is one sentence with line and field."""

import dataclasses
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt_hpo.plan import toml
from metaopt_hpo.plan.api import Plan
from metaopt_hpo.plan.costs import Budget, Cost, Hardware, PlanError
from metaopt_hpo.plan.model import Pilot, Target, Uncertainty, Vary
from metaopt_hpo.plan.recipe import Basis, Published, Range, Recipe

positive = st.floats(min_value=1e-9, max_value=1e30)
fraction = st.floats(min_value=1e-3, max_value=1.0)
text = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)
uncertainty = st.builds(Uncertainty, lr=positive, batch=positive, weight_decay=positive, loss=positive)
costs = st.builds(Cost, flops=positive, tokens=positive, gpu_hours=positive, joules=positive, money=positive)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    hardware = Hardware(
        name=draw(text),
        devices=draw(st.integers(1, 10_000)),
        peak_flops=draw(positive),
        utilisation=draw(fraction),
        watts=draw(positive),
        price=draw(positive),
        measured_flops=draw(st.none() | positive),
        source=draw(text),
    )
    sizes = tuple(sorted(draw(st.sets(st.floats(min_value=1, max_value=1e9), min_size=1, max_size=4))))
    pilots = tuple(
        Pilot(
            name=f"pilot-{i}",
            size=size,
            tokens=draw(positive),
            batch=draw(positive),
            width=draw(st.none() | st.integers(1, 10**6)),
            strategy="metaoptimize" if lr is None else "wsd",
            lr=lr,
            seed=draw(st.integers(0, 2**31)),
            cost=draw(costs),
            expected=draw(uncertainty),
            pays=draw(st.booleans()),
        )
        for i, size in enumerate(sizes)
        for lr in [draw(st.none() | st.just("law") | positive)]
    )
    return Plan(
        target=Target(size=1e12, tokens=draw(positive), batch=draw(st.none() | positive)),
        vary=Vary(sizes=sizes, seeds=tuple(draw(st.sets(st.integers(0, 99), min_size=1, max_size=3)))),
        budget=Budget(
            kind=draw(st.sampled_from(["flops", "share", "money"])), amount=draw(positive), text=draw(text)
        ),
        hardware=hardware,
        workload="text-lm " + draw(text),
        pilots=pilots,
        before=draw(uncertainty),
        base=tuple(draw(st.lists(text, max_size=2))),
        workload_options=draw(st.dictionaries(text, text, max_size=2)),
    )


@given(plans())
@settings(max_examples=60, deadline=None)
def test_a_plan_reads_back_as_it_was_written(plan: Plan) -> None:
    assert Plan.from_toml(plan.to_toml()) == plan


def small() -> Plan:
    hardware = Hardware(name="h100x8", devices=8, peak_flops=989e12, utilisation=0.4, watts=700, price=2.5)
    sd = Uncertainty(lr=0.3, batch=0.4, weight_decay=0.5, loss=0.02)
    pilots = (
        Pilot(name="a", size=1e7, tokens=2e8, batch=65536, cost=hardware.cost(1.2e16, 2e8), expected=sd),
        Pilot(
            name="b",
            size=2e7,
            tokens=4e8,
            batch=65536,
            strategy="wsd",
            lr="law",
            cost=hardware.cost(4.8e16, 4e8),
            expected=sd,
        ),
    )
    return Plan(
        target=Target(size=7e9, tokens=1.4e12),
        vary=Vary(sizes=(1e7, 2e7)),
        budget=Budget(kind="share", amount=0.02, text="2 % of the target"),
        hardware=hardware,
        workload="text-lm",
        pilots=pilots,
        before=sd,
    )


EDITS = [
    ("size = 7e9", "size = -1", "size"),
    ("size = 7e9", "size = nan", "size"),
    ("size = 7e9", 'size = "big"', "target.size"),
    ("size = 1e7", "size = 1e13", "smaller than the target"),
    ("tokens = 2e8", "tokenz = 2e8", "tokens"),
    ('strategy = "wsd"', 'strategi = "wsd"', "strateg"),
    ('strategy = "wsd"', "strategy = 3", "pilots[2].strategy"),
    ('lr = "law"', 'lr = "lauw"', "pilots[2].lr"),
    ('kind = "share"', 'kind = "shares"', "budget.kind"),
    ("[budget]", "[budget", "line"),
    ("workload =", "wirkload =", "workload"),
    ('workload = "text-lm"', 'workload = "  "', "workload"),
    ('name = "b"', 'name = "a"', "'a'"),
    ('schedule = "wsd"', 'schedule = "cosin"', "schedule"),
    ("version = 1", "version = 99", "later"),
    ('currency = "USD"', 'currency = "EURO"', "currency must be a code"),
    ("seed = 0", "seed = -1", "seed of 'a'"),
    ("[budget]", "[budget]\n[budget]", "line"),
    ("size = 7e9", "size = true", "target.size must be a number"),
    ('lr = "law"', "lr = true", "pilots[2].lr must be a number"),
]


@pytest.mark.parametrize(("old", "new", "said"), EDITS)
def test_a_wrong_edit_is_one_sentence(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = small().to_toml()
    assert old in text
    path = tmp_path / "plan.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(PlanError) as raised:
        Plan.read(path)
    message = str(raised.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


def test_the_line_that_is_named_holds_the_edit() -> None:
    lines = small().to_toml().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith('lr = "law"'))
    lines[at] = 'lr = "lauw"'
    with pytest.raises(PlanError, match=rf"line {at + 1}: pilots\[2\]\.lr"):
        Plan.from_toml("\n".join(lines))


def test_no_file_no_text_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="metaopt-hpo plan --out"):
        Plan.read(tmp_path / "plan.toml")
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="UTF-8"):
        Plan.read(tmp_path / "plan.toml")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(tmp_path)


def test_a_file_that_windows_has_saved_is_read(tmp_path: Path) -> None:
    plan = small()
    text = plan.to_toml().replace("\n", "\r\n")
    (tmp_path / "plan.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Plan.read(tmp_path / "plan.toml") == plan


def test_a_budget_that_the_hardware_does_not_measure_is_refused() -> None:
    plan = small()
    for budget, said in (
        (Budget(kind="money", amount=5.0, currency="EUR"), "prices of .* are in USD"),
        (Budget(kind="joules", amount=5.0), "no power"),
    ):
        idle = dataclasses.replace(plan.hardware, watts=0.0)
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(plan, budget=budget, hardware=idle)


def test_costs_add_up_and_a_plan_stays_within_its_own_pilots() -> None:
    plan = small()
    assert plan.cost.flops == pytest.approx(sum(p.cost.flops for p in plan.pilots))
    assert plan.cost.gpu_hours == pytest.approx(plan.cost.flops / (989e12 * 0.4) / 3600)
    assert plan.cost.joules == pytest.approx(plan.cost.gpu_hours * 3600 * 700)
    assert plan.share == pytest.approx(plan.budget.spent(plan.cost, plan.target_cost))


def recipe() -> Recipe:
    one = Range(value=1e-3, low=5e-4, high=2e-3)
    return Recipe(
        target=Target(size=7e9, tokens=1.4e12),
        lr=one,
        batch=Range(value=4e6, low=2e6, high=8e6),
        ramp=((0.0, 1e6), (1e10, 4e6)),
        weight_decay=one,
        warmup=1e10,
        cooldown=2.8e11,
        loss=Range(value=2.0, low=1.9, high=2.1),
        within=2.0,
        cost=Cost(flops=5.9e22),
        basis=Basis(
            runs=6,
            size=1e8,
            tokens=2e9,
            ln_size=4.2,
            ln_tokens=6.5,
            published=(Published(name="x", lr=1e-3),),
        ),
        watch=("the loss",),
        stop=("at the end",),
    )


def numbers(data: Any) -> Iterator[tuple[Any, Any]]:
    """(what holds it, key or index) of every number in what a TOML file says."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        if isinstance(value, dict | list):
            yield from numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield data, key


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("kind", [Plan, Recipe])
def test_true_and_false_are_no_numbers(kind: type, switch: bool) -> None:
    data = tomllib.loads(toml.to_toml(small() if kind is Plan else recipe()))
    places = list(numbers(data))
    assert len(places) > 20
    for holder, key in places:
        number, holder[key] = holder[key], switch
        with pytest.raises(PlanError, match="must be a number, and true and false are none"):
            toml.from_toml(kind, tomlkit.dumps(data))
        holder[key] = number
    toml.from_toml(kind, tomlkit.dumps(data))


def test_a_recipe_reads_back_as_it_was_written() -> None:
    made = recipe()
    assert toml.from_toml(Recipe, toml.to_toml(made)) == made


def test_steps_count_each_stretch_of_a_ramp_at_its_own_batch() -> None:
    made = recipe()
    assert made.warmup_steps == 10_000
    assert made.steps == math.ceil(10_000 + (1.4e12 - 1e10) / 4e6)
    assert made.cooldown_steps == 70_000
