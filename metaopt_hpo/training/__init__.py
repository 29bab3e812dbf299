"""What happens during a run: stepping, recording, checkpointing."""

from metaopt_hpo.training.checkpoint import CheckpointError
from metaopt_hpo.training.ending import NoProgress, RunDiverged, RunStopped
from metaopt_hpo.training.horizon import horizon_of
from metaopt_hpo.training.live import Progress, Scalars
from metaopt_hpo.training.run import TrainingRun
from metaopt_hpo.training.size import model_size

__all__ = [
    "CheckpointError",
    "NoProgress",
    "Progress",
    "RunDiverged",
    "RunStopped",
    "Scalars",
    "TrainingRun",
    "horizon_of",
    "model_size",
]
