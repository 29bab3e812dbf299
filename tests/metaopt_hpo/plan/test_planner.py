"""Plans: budgets, hardware, the order of pilots, and what more budget brings."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metaopt_hpo
from metaopt_hpo.plan.api import Plan, plan
from metaopt_hpo.plan.budget import parse_budget
from metaopt_hpo.plan.costs import Budget, PlanError
from metaopt_hpo.plan.currencies import CURRENCIES
from metaopt_hpo.plan.hardware import DEVICES, hardware
from metaopt_hpo.plan.knowledge import Knowledge, Run, compute_share
from metaopt_hpo.plan.members import ladder
from metaopt_hpo.plan.model import Target
from metaopt_hpo.plan.planner import Planner
from metaopt_hpo.plan.words import number

H100 = hardware("h100x8")


@pytest.fixture(scope="module")
def large() -> Plan:
    return plan(target="7B", tokens="1.4T", budget="2 % of the target", hardware="h100x8")


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("2 % of the target", "share", 0.02),
        ("2%", "share", 0.02),
        ("0.02 of the target", "share", 0.02),
        ("50 GPU-hours", "gpu_hours", 50),
        ("50 gpu hours", "gpu_hours", 50),
        ("2 GPU-days", "gpu_hours", 48),
        ("3 days", "gpu_hours", 3 * 24 * 8),
        ("1e21 FLOPs", "flops", 1e21),
        ("5 EFLOPs", "flops", 5e18),
        ("2 petaflop-days", "flops", 2e15 * 86400),
        (1e21, "flops", 1e21),
        ("3 MWh", "joules", 1.08e10),
        ("1.5 GJ", "joules", 1.5e9),
        ("2000 USD", "money", 2000),
        ("$2,000", "money", 2000),
        ("2k usd", "money", 2000),
        ("1e9 tokens", "tokens", 1e9),
        ("5B tokens", "tokens", 5e9),
        ("5 billion tokens", "tokens", 5e9),
    ],
)
def test_budgets_as_people_write_them(text: str | float, kind: str, amount: float) -> None:
    found = parse_budget(text, H100)
    assert (found.kind, found.amount) == (kind, pytest.approx(amount))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2000 quatloos", "unknown unit 'quatloos'"),
        ("2000 XYZ", "unknown currency, XYZ"),
        ("2000 EUR", "currency='EUR'"),
        ("5", "no unit"),
        ("-3 USD", "positive"),
        ("0 tokens", "positive"),
        ("much", "not understood"),
        ("nan FLOPs", "not understood"),
        ("", "not understood"),
    ],
)
def test_a_budget_that_is_none_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said) as raised:
        parse_budget(text, H100)
    assert "\n" not in str(raised.value)


def test_money_needs_a_price_in_its_own_currency() -> None:
    assert parse_budget("2000 EUR", hardware("a100", price=2.0, currency="EUR")).currency == "EUR"
    with pytest.raises(PlanError, match="has no price"):
        parse_budget("2000 USD", hardware("mine", peak_flops=1e14))
    with pytest.raises(PlanError, match="give price"):
        hardware("a100", currency="EUR")
    with pytest.raises(PlanError, match="no power"):
        parse_budget("3 MWh", hardware("mine", peak_flops=1e14))
    assert hardware("a100", price=2.0, currency="€").currency == "EUR"
    with pytest.raises(PlanError, match="currency 'XXX' is unknown"):
        hardware("a100", price=2.0, currency="XXX")
    assert all(len(c) == 3 for c in CURRENCIES)


@pytest.mark.parametrize("text", ["7B", "7e9", "7 billion", "7_000_000_000", "7,000,000,000", "7000M"])
def test_counts_as_people_write_them(text: str) -> None:
    assert number(text, "target") == 7e9
    with pytest.raises(PlanError, match="target must be a positive number"):
        number("7,0B", "target")


@pytest.mark.parametrize(
    "text", ["h100x8", "8xh100", "8 x H100", "h100 x 8", "H100*8", "nvidia h100 x8", "h100-sxm x8"]
)
def test_hardware_as_people_write_it(text: str) -> None:
    assert hardware(text).devices == 8
    assert hardware(text).peak_flops == DEVICES["h100"].peak


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_its_source(name: str) -> None:
    made = hardware(name)
    assert made.source
    assert made.cost(1e18, 1.0).gpu_hours == pytest.approx(1e18 / made.peak_flops / made.utilisation / 3600)


@pytest.mark.parametrize(
    ("text", "said"),
    [("h1000", "'h100'"), ("abacus", "peak_flops"), ("0xh100", "no device"), ("", "not understood")],
)
def test_unknown_hardware_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said) as raised:
        hardware(text)
    assert "\n" not in str(raised.value)


BUDGETS = st.floats(min_value=-4.0, max_value=0.0).map(lambda x: 10**x)
PLANNERS = {
    "large": Planner.again(plan(target=7e9, tokens=1.4e12, budget="2 %", hardware="h100x8")),
    "batch given": Planner.again(plan(target=1e9, tokens=2e10, budget="2 %", batch=2**20)),
    "no base": Planner.again(plan(target=1e8, tokens=2e9, budget="5 %", base=[], seeds=2)),
}


@pytest.mark.parametrize("name", PLANNERS)
@given(shares=st.tuples(BUDGETS, BUDGETS))
@settings(max_examples=25, deadline=None)
def test_more_budget_never_leaves_more_unknown(name: str, shares: tuple[float, float]) -> None:
    found = []
    for share in sorted(shares):
        try:
            found.append(PLANNERS[name].plan(Budget(kind="share", amount=share)))
        except PlanError:
            found.append(None)
    less, more = found
    if less is not None:
        assert more is not None
        assert compute_share(more.expected) <= compute_share(less.expected) * (1 + 1e-9)
    for share, made in zip(sorted(shares), found, strict=True):
        if made is not None:
            assert made.share <= share * (1 + 1e-9)
            assert sum(p.cost.flops for p in made.pilots) <= share * made.target_cost.flops * (1 + 1e-9)


@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from([1e7, 1e8, 1e9]),
            st.sampled_from([1e9, 1e10]),
            st.sampled_from([2**15, 2**16]),
            st.sampled_from(["metaoptimize", "wsd"]),
        ),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_another_run_never_leaves_more_unknown(runs: list[tuple[float, float, float, str]]) -> None:
    knowledge = Knowledge(7e9, 1.4e12, lr=(1e-5, 1e-1), batch_given=False)
    before = knowledge.after([])
    for k in range(len(runs)):
        after = knowledge.after([Run(*r) for r in runs[: k + 1]])
        for name in ("lr", "batch", "weight_decay", "loss"):
            assert getattr(after, name) <= getattr(before, name) * (1 + 1e-9)
        before = after


def test_pilots_come_cheap_first_and_each_says_what_it_leaves_unknown(large: Plan) -> None:
    chosen = large.chosen
    costs = [p.cost.flops for p in chosen]
    assert costs == sorted(costs)
    for a, b in itertools.pairwise(chosen):
        assert b.expected.lr <= a.expected.lr * (1 + 1e-9)
        assert b.expected.loss <= a.expected.loss * (1 + 1e-9)
    assert large.expected.lr < large.before.lr
    assert len({p.size for p in chosen}) >= 3
    assert any(p.strategy == "metaoptimize" for p in chosen)
    assert {p.lr for p in chosen if p.strategy == "metaoptimize"} == {None}
    assert all(p.pays for p in chosen)
    assert large.cost.flops == pytest.approx(sum(costs))


def test_the_same_plan_twice(large: Plan) -> None:
    again = plan(target="7B", tokens="1.4T", budget="2 % of the target", hardware="h100x8")
    assert again == large
    assert Plan.from_toml(large.to_toml()) == large


def test_both_questions_about_budgets_are_answered(large: Plan) -> None:
    got = large.for_budget("50 GPU-hours")
    assert got.cost.gpu_hours <= 50
    needed = large.budget_for(lr=0.6)
    assert needed.expected.lr <= math.log(1.6)
    assert needed.budget.amount == pytest.approx(needed.cost.flops)
    tighter = large.budget_for(lr=0.45)
    assert tighter.cost.flops >= needed.cost.flops
    with pytest.raises(PlanError, match="the best leave"):
        large.budget_for(lr=0.01)
    with pytest.raises(ValueError, match=r"lr=0\.2"):
        large.budget_for()
    with pytest.raises(ValueError, match="positive"):
        large.budget_for(lr=-1)


def test_pilots_beyond_those_that_pay_are_marked() -> None:
    made = plan(target=1e8, tokens=2e9, budget="90 % of the target", base=[], lr=(1e-3, 2e-3))
    assert not all(p.pays for p in made.pilots)
    assert made.cost.flops < sum(p.cost.flops for p in made.pilots)
    first = next(i for i, p in enumerate(made.pilots) if not p.pays)
    assert not any(p.pays for p in made.pilots[first:])


def test_measured_throughput_reprices_the_pilots(large: Plan) -> None:
    slow = large.measured(flops=1e18, seconds=1e18 / (large.hardware.flops_per_second / 2))
    assert slow.cost.flops == large.cost.flops
    assert slow.cost.gpu_hours == pytest.approx(2 * large.cost.gpu_hours)
    assert slow.cost.money == pytest.approx(2 * large.cost.money)
    with pytest.raises(ValueError, match="seconds"):
        large.measured(1e18, 0.0)


def test_extrapolation_above_a_hundred_billion_parameters() -> None:
    made = plan(target="400B", tokens="15T", budget="1 % of the target", hardware="h100x1024")
    assert made.share <= 0.01
    assert made.expected.lr < made.before.lr


def test_a_workload_of_ours_by_width() -> None:
    made = plan(
        target="width=64",
        tokens=512 * 1024,
        budget="60 % of the target",
        hardware="cpux2",
        workload="text-lm",
    )
    assert made.target.width == 64
    assert made.target.batch == 1024
    assert all(p.width is not None and p.width < 64 for p in made.pilots)
    assert all(p.batch == 1024 and p.steps >= 512 for p in made.pilots)
    same = plan(
        target=made.target.size, tokens=512 * 1024, budget="60 %", hardware="cpux2", workload="text-lm"
    )
    assert same.target == made.target


BAD = [
    ({"budget": "1e-9 % of the target"}, "too small for any pilot"),
    ({"budget": "1 FLOPs"}, "too small for any pilot"),
    ({"sizes": [1e7, 8e9]}, "no larger than its pilot"),
    ({"sizes": [1e7, 1e8], "widths": [1]}, "as many as"),
    ({"widths": [16]}, "needs sizes"),
    ({"target": "width=64"}, "only a built-in workload"),
    ({"target": "large"}, "target must be a positive number"),
    ({"target": -7e9}, "target must be a positive number"),
    ({"tokens": 0}, "tokens must be a positive number"),
    ({"tokens": math.inf}, "tokens must be a positive number"),
    ({"schedule": "cosin"}, "schedule must be one of"),
    ({"lr": (1e-1, 1e-5)}, "low < high"),
    ({"seeds": 0}, "seeds must be at least 1"),
    ({"batch": -1}, "batch must be a positive"),
    ({"batch": 2e12}, "less than one step"),
    ({"hardware": "abacus"}, "not in the table"),
    ({"budget": "2000 EUR"}, "EUR"),
    ({"base": ["no-such-law"]}, "no-such-law"),
    ({"workload": "text-lm", "target": 2.04e5}, "no member of 2.04e"),
    ({"workload": "text-lm", "sizes": [1e5]}, "set by its widths"),
    ({"workload": "text-lm", "target": "width=16"}, "no size below"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD)
def test_bad_input_is_one_sentence(wrong: dict[str, object], said: str) -> None:
    arguments = {"target": 7e9, "tokens": 1.4e12, "budget": "2 %", **wrong}
    with pytest.raises((metaopt_hpo.MetaOptError, ValueError), match=said) as raised:
        plan(**arguments)
    assert "\n" not in str(raised.value)


def test_the_ladder_lies_below_its_target() -> None:
    for size in (1e6, 1e8, 7e9, 1e12):
        found = [m.size for m in ladder(Target(size=size, tokens=20 * size))]
        assert found == sorted(found)
        assert len(found) >= 3
        assert found[-1] < size


def test_the_room_is_called_as_its_function() -> None:
    made = metaopt_hpo.plan(target=1e9, tokens=2e10, budget="2 %")
    assert isinstance(made, metaopt_hpo.Plan)


COMMAND = "python train.py --width {width} --lr {lr} --steps {steps}"


def test_a_command_line_has_schedule_pilots_at_its_own_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    options = {"sizes": "128:4e5,256:1.6e6,512:6.4e6", "batch": "65536"}
    asked = {"target": 1e8, "tokens": 2e9, "budget": "20 %", "base": []}
    made = plan(**asked, workload=COMMAND, workload_options=options)
    assert {p.strategy for p in made.pilots} == {"wsd"}
    assert {p.width for p in made.pilots} <= {128, 256, 512}
    assert made.target.batch == 65536
    assert Plan.from_toml(made.to_toml()) == made
    assert made.for_budget("20 %") == made
    by_lists = plan(**asked, workload=COMMAND, sizes=[4e5, 1.6e6, 6.4e6], widths=[128, 256, 512], batch=65536)
    assert by_lists.pilots == made.pilots
    own = plan(**asked, workload=COMMAND + " --how {strategy}", workload_options=options)
    assert "metaoptimize" in {p.strategy for p in own.pilots}
    for wrong, said in (
        ({"workload": COMMAND.replace("{width}", "{widht}")}, "{width}"),
        ({"workload": "missing.py"}, "missing.py"),
        ({"workload": COMMAND, "target": 1e5}, "no size below"),
        ({"workload": COMMAND, "workload_options": {}}, "sizes"),
    ):
        with pytest.raises(metaopt_hpo.MetaOptError) as raised:
            plan(**{**asked, "workload_options": options, **wrong})
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
