"""Rules as text: what people type and paste, exact exponents, and errors that say what is needed."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaopt_hpo.theory import LMOBound, RuleCheck, verify_rule
from metaopt_hpo.theory.rules import parse_rule, resolve

PLAIN = LMOBound(delta=1.0, smoothness=1.0, noise=1.0)


class TestRules:
    @pytest.mark.parametrize(
        ("text", "lr"),
        [
            ("lr ~ B^0.5 D^-0.5, B ~ D^0.571", Fraction(-429, 2000)),
            ("eta ∝ (B/D)^(1/2), B ~ D^1/2", Fraction(-1, 4)),
            ("lr ~ B^-1/2 * D**-0.25; B ~ D^0.5", Fraction(-1, 2)),
            ("lr ~ √D", Fraction(1, 2)),
            ("lr ~ 1/D", Fraction(-1)),
            ("lr ~ a^0.5, a ~ B/D, B ~ D^0.5", Fraction(-1, 4)),
            ("lr ~ D^−0.5", Fraction(-1, 2)),
            ("lr ~ D^(4/7)", Fraction(4, 7)),
            ("lr∝D^( -4 / 7 )", Fraction(-4, 7)),
            ("lr ~ D^-4/7", Fraction(-4, 7)),
            ("lr ~ D^((0.571 - 1)/2)", Fraction(-429, 2000)),
            ("lr ~ D^(-(1 - 0.5*0.571))", Fraction(-1429, 2000)),
            ("lr ~ D^-(1/2)", Fraction(-1, 2)),
            ("lr ~ B × D⁻¹ᐟ², B ~ D^½", Fraction(0)),
            ("η* ∼ D⁻⁰·⁵", Fraction(-1, 2)),
            (r"$\eta^* \propto \sqrt{B/D}$, $B \sim D^{\frac{4}{7}}$", Fraction(-3, 14)),
            ("learning rate ~ 1/sqrt(D);", Fraction(-1, 2)),
            ("LR = 0.3 * steps^-0.5, batch size ~ tokens^0.5", Fraction(-1, 4)),
            ("lr ~ K^-0.5, B ~ D^.5", Fraction(-1, 4)),
            ("lr ~ D^-1/2/B, B ~ D^.25", Fraction(-3, 4)),
            ("lr ~ (B^2 D^-3)^(1/4), B ~ D", Fraction(-1, 4)),
        ],
    )
    def test_parsing(self, text, lr):
        assert resolve(parse_rule(text))["lr"].powers.get("tokens", 0) == lr

    @given(st.integers(-999, 999), st.integers(-999, 999))
    def test_round_trip(self, x, y):
        powers = resolve(parse_rule(f"lr ~ B^{x / 1000} D^{y / 1000}, B ~ D"))["lr"].powers
        assert powers.get("tokens", 0) == Fraction(x + y, 1000)

    @pytest.mark.parametrize(
        ("rule", "path", "message"),
        [
            ("", None, "the rule is empty"),
            ("lr D^-0.5", None, "exactly one of"),
            ("lr ~ X^2", None, "unknown variable 'X'"),
            ("lr ~ D^", None, "cannot read"),
            ("lr ~ D^0.5)", None, "cannot read"),
            ("lr ~ D^-1/0", None, "divides by 0"),
            ("lr ~ D^1, lr ~ D^2", None, "states lr twice"),
            ("B ~ D^0.5", None, "says nothing about lr"),
            ("lr ~ 3 D^-0.5", None, "has a coefficient"),
            ("beta1 ~ D^-0.5", None, "1 − β₁"),
            ("lr ~ D^-0.5, B ~ D^1.2", None, "leaves 1 <= B <= D"),
            ("lr ~ D^-0.5, a ~ D^0.2", None, r"leaves \(0, 1\]"),
            ("lr ~ D^-0.5, a ~ D^-0.9, B ~ D^0.5", None, "outlives the run"),
            ("lr ~ n^-1", None, "give a path such as 'L ~ n"),
            ("lr ~ D^-0.5, L ~ n^2", None, "state that in path"),
            ("lr ~ D^-0.5, B ~ D^0.5", "B ~ D^0.4", "keep one of the two"),
            ("lr ~ B, B ~ lr", None, "defined by each other"),
            ("lr ~ L^-0.5", None, "may hold B, a and the scales"),
            ("lr ~ B, B ~ a, a ~ B", None, "defined by each other"),
            ("lr ~ D-0.5", None, "a negative power is written D"),
            ("lr ~ D^-0.5 + 1", None, "a sum is no power law"),
            ("lr ~ log(D)", None, "log in .* is no power law"),
            ("lr ~ D^x", None, "exponent 'x' in .* must be a number"),
            ("lr ~ D^1e9", None, "exceeds 100"),
            ("lr ~ D^1e400", None, "exceeds 100"),
            ("lr ~ D^(1/(2-2))", None, "divides by 0"),
            ("lr = 1e400 D", None, "finite coefficient"),
            ("lr = (1e300)^2 D", None, "divides by 0 or overflows"),
            ("lr = 1/0 D", None, "divides by 0 or overflows"),
            ("lr = D 0.5", None, "write \\^ or \\* before it"),
            ("lr = 1.2.3 D", None, "write \\^ or \\* before it"),
            ("lr ~ D^--0.5", None, "cannot read '-'"),
            ("lr ~ D^-0.5, a = 1.5", None, r"a = 1.5 leaves \(0, 1\]"),
            ("lr ~ D^-0.5, B = 2 D", None, "batch = 2 D leaves 1 <= B <= D"),
            ("lr ~ D^-0.5, B = 0.5", None, "batch = 0.5 leaves 1 <= B <= D"),
            ("lr ~ D^-0.5, a = 0.5 D^-0.5, B ~ D^0.5", None, "outlives the run"),
            ("lr ~ D^-0.5", {"B": 1.5}, "leaves 1 <= B <= D"),
            ("lr ~ D^-0.5", {"X": 1.5}, "unknown variable 'X'"),
            (None, None, "the rule is empty"),
        ],
    )
    def test_bad_rules_say_what_is_needed(self, rule, path, message):
        with pytest.raises(ValueError, match=message):
            verify_rule(rule, PLAIN, path)

    @given(st.text(alphabet="lrBDanN0123456789.^-−~=,()/*+√½² e", max_size=24))
    @settings(max_examples=150, deadline=None)
    def test_any_text_is_a_rule_or_a_value_error(self, text):
        with contextlib.suppress(ValueError):
            assert isinstance(verify_rule("lr ~ " + text, PLAIN), RuleCheck)

    def test_path_as_mapping(self):
        assert verify_rule("lr ~ sqrt(B/D)", PLAIN, {"B": 0.5}).verdict == "optimal"
