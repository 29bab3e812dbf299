"""Objects that an earlier version pickled with a Tuner are found again under their new names, and go on."""

from __future__ import annotations

import base64
import importlib
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from stub_cluster import StubCluster, stub_trial, world_curve

DATA = Path(__file__).parent / "data"


@pytest.fixture(params=["trial_book", "state"])
def objects(request: pytest.FixtureRequest) -> Any:
    """Scheduler, searcher and callback of `tuner_configs`, as versions pickled them whose trials were in a module of
    this name; one trial has ended."""
    return cloudpickle.loads(base64.b64decode((DATA / f"{request.param}.pickle.txt").read_text()))


def test_a_scheduler_goes_on_with_what_it_knew(objects: Any) -> None:
    scheduler, _, callback = objects["law"]
    assert callback.book is scheduler.book
    assert scheduler.columns.size == "n"
    assert scheduler.book.entries["a"].spared
    assert [r.loss for r in callback.table().records()] == [3.0]

    def curve(trial: Any) -> Any:
        return world_curve(trial.config["n"], trial.config["tokens"], trial.config["lr"])

    cluster = StubCluster(scheduler, curve, slots=2)
    for i in range(4):
        cluster.add(stub_trial(f"t{i}", n=1e6, size=1e6, tokens=2e7, batch=1e4, lr=1e-3 * 2**i))
    cluster.run()
    # its ASHA ends every trial after 100 tokens
    assert all("ASHA stopped it" in scheduler.book.entries[f"t{i}"].reason for i in range(4))
    assert "no law" in scheduler.debug_string()


def test_a_searcher_goes_on_with_what_it_knew(objects: Any) -> None:
    _, supply, _ = objects["search"]
    assert [r.loss for r in supply.searcher.book.records()] == [3.0]
    assert supply.searcher.suggest("next")["size"] in (1e6, 2e6)


def test_a_callback_of_another_scheduler_goes_on(objects: Any) -> None:
    scheduler, _, callback = objects["asha"]
    assert callback.book.entries == {}
    assert scheduler.metric == "loss"


def test_a_class_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="keeper"):
        __import__("metaopt_hpo_ray.keeper", fromlist=["Nothing"]).Nothing  # noqa: B018


def test_programs_of_earlier_versions_find_what_they_import() -> None:
    import metaopt_hpo_ray
    from metaopt_hpo_ray import journal

    keeper, state = (importlib.import_module(f"metaopt_hpo_ray.{m}") for m in ("keeper", "state"))
    assert metaopt_hpo_ray.CurveKeeper is metaopt_hpo_ray.JournalCallback is keeper.CurveKeeper
    assert keeper.JOURNAL == journal.JOURNAL
    assert callable(state.header)
    for module, name in (("reports", "Results"), ("sizes", "size_of"), ("saved_state", "SavedAsJson")):
        assert callable(getattr(importlib.import_module(f"metaopt_hpo_ray.{module}"), name))
    assert not hasattr(keeper, "Nothing")
