"""The public names and where each is at home: one list, for the lazy face and for type checkers."""

from .columns import TuneWarning as TuneWarning
from .configs import tuner_configs as tuner_configs
from .engine import RayEngine as RayEngine
from .journal_callback import JournalCallback as JournalCallback
from .restoring import restore as restore
from .result_table import decision_log as decision_log
from .result_table import trial_table as trial_table
from .scheduler import ScalingLawScheduler as ScalingLawScheduler
from .searcher import ScalingLawSearch as ScalingLawSearch
from .strategy import build_strategy as build_strategy
from .strategy import resources_by_size as resources_by_size
from .strategy import size_of as size_of
from .strategy import strategy_space as strategy_space
from .strategy import with_resources as with_resources
from .trial_run import TrialRun as TrialRun
