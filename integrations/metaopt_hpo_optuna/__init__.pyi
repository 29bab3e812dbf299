"""The public names and where each is at home: one list, for the lazy face and for type checkers."""

from .checkpoints import trial_folder as trial_folder
from .engine import OptunaEngine as OptunaEngine
from .fields import StudyWarning as StudyWarning
from .leases import retry_stale_trials as retry_stale_trials
from .pruner import ScalingLawPruner as ScalingLawPruner
from .sampler import ScalingLawSampler as ScalingLawSampler
from .strategy import repeat_seed as repeat_seed
from .strategy import suggest_strategy as suggest_strategy
from .study_table import add_records as add_records
from .study_table import trial_table as trial_table
from .trial_run import TrialRun as TrialRun
