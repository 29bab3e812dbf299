"""Optuna's conformance suites assert in their own modules; pytest must rewrite them to explain failures."""

import optuna
import pytest

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")
optuna.logging.set_verbosity(optuna.logging.ERROR)
