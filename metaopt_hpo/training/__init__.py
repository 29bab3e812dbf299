"""What happens during a run: stepping, recording, checkpointing."""

from metaopt_hpo.training.checkpoint import CheckpointError
from metaopt_hpo.training.run import RunDiverged, RunStopped, TrainingRun

__all__ = ["CheckpointError", "RunDiverged", "RunStopped", "TrainingRun"]
