"""Real training jobs, chosen by name."""

from metaopt_hpo.workloads.base import Workload, WorkloadError, train
from metaopt_hpo.workloads.text_lm import TextLM

__all__ = ["TextLM", "Workload", "WorkloadError", "train"]
