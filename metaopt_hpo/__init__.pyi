"""The public names and where each is at home: one list, for the lazy face and for type checkers."""

from .comparison.design import ComparisonPlan as ComparisonPlan
from .comparison.outcome import judge as judge
from .comparison.protocol import compare as compare
from .comparison.results import Comparison as Comparison
from .errors import MetaOptError as MetaOptError
from .errors import MetaOptWarning as MetaOptWarning
from .optim import MetaOptimize as MetaOptimize
from .plan.api import Plan as Plan
from .plan.api import plan as plan
from .plan.recipes import Recipe as Recipe
from .report import write_report as write_report
from .report.notebook import plot as plot
from .scaling import Law as Law
from .scaling import LawRefused as LawRefused
from .scaling import fit as fit
from .strategies.wrap import wrap as wrap
from .training import TrainingRun as TrainingRun
from .training import model_size as model_size
from .trials.record import TrialRecord as TrialRecord
from .trials.record import token_grid as token_grid
from .trials.table import TrialTable as TrialTable

__version__: str
