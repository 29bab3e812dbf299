"""The policy that every integration calls: what to run next, and what becomes of a running trial.

`proposing` says what to run next (`design`: which size and tokens; `points`, `target_points`: which lr and batch),
`stopping` whether a trial may still win, `refits` when a law is fitted again. Pure: no framework, no clock.
"""

from metaopt_hpo.scaling.policy.conditioned import Finished
from metaopt_hpo.scaling.policy.history import History, Run
from metaopt_hpo.scaling.policy.limits import Limits
from metaopt_hpo.scaling.policy.proposing import (
    Config,
    Context,
    Proposal,
    next_cell,
    propose,
    propose_at,
    propose_batch,
    propose_next,
    runs_of,
)
from metaopt_hpo.scaling.policy.refits import Fitted, Refits
from metaopt_hpo.scaling.policy.stopping import (
    PATIENCE,
    STOP_BELOW,
    Decision,
    Rule,
    Verdict,
    comparable,
    decide,
    verdict,
)

__all__ = [
    "PATIENCE",
    "STOP_BELOW",
    "Config",
    "Context",
    "Decision",
    "Finished",
    "Fitted",
    "History",
    "Limits",
    "Proposal",
    "Refits",
    "Rule",
    "Run",
    "Verdict",
    "comparable",
    "decide",
    "next_cell",
    "propose",
    "propose_at",
    "propose_batch",
    "propose_next",
    "runs_of",
    "verdict",
]
