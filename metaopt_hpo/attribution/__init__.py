"""Why a fitted law differs from its bound, by controlled experiment (arXiv 2603.15958's open question).

Public: `run_tier` (the experiment), `estimate_constants` (a bound's constants from a run), and the pieces they are of.
"""

from metaopt_hpo.attribution.config import ExperimentConfig
from metaopt_hpo.attribution.constants import Constants, RunProbes, estimate_constants, probe_run
from metaopt_hpo.attribution.decomposition import Decomposition, Part, decompose
from metaopt_hpo.attribution.estimand import AttributionError, Plane, Resample, fit_plane
from metaopt_hpo.attribution.experiment import WorldRuns, run_world
from metaopt_hpo.attribution.findings import WorldFinding, attribute
from metaopt_hpo.attribution.levels import CRITERIA, FACTORS, IDEAL, PRACTICE, Setting
from metaopt_hpo.attribution.outcome import Attribution
from metaopt_hpo.attribution.proxy import ProxyCheck, proxy_checks
from metaopt_hpo.attribution.stepping import GridResult, World, run_grid
from metaopt_hpo.attribution.tiers import Job, run_tier, tier_jobs

__all__ = [
    "CRITERIA",
    "FACTORS",
    "IDEAL",
    "PRACTICE",
    "Attribution",
    "AttributionError",
    "Constants",
    "Decomposition",
    "ExperimentConfig",
    "GridResult",
    "Job",
    "Part",
    "Plane",
    "ProxyCheck",
    "Resample",
    "RunProbes",
    "Setting",
    "World",
    "WorldFinding",
    "WorldRuns",
    "attribute",
    "decompose",
    "estimate_constants",
    "fit_plane",
    "probe_run",
    "proxy_checks",
    "run_grid",
    "run_tier",
    "run_world",
    "tier_jobs",
]
