"""Real training jobs, chosen by name."""

from metaopt_hpo.workloads.base import Scored, Workload, WorkloadError, scores, train
from metaopt_hpo.workloads.registry import available_workloads, members
from metaopt_hpo.workloads.text_lm import TextLM

__all__ = [
    "Scored",
    "TextLM",
    "Workload",
    "WorkloadError",
    "available_workloads",
    "members",
    "scores",
    "train",
]
