"""The horizon of a run that a framework plans: optimizer steps from its own arguments."""

from __future__ import annotations

import math
from typing import Any


def horizon_of(args: Any, dataset_size: int) -> int:
    """Optimizer steps that Hugging Face's Trainer will take, for `wrap(optimizer, horizon_of(args, len(data)))`.

    `max_steps` where it is set, else epochs × ⌈batches / accumulation⌉, with the batches of one process; counted as
    `Trainer.set_initial_training_values` of transformers 5 does for a data set with a length, without sequence
    parallelism or `group_by_length` of its own.

    Args:
        args: `transformers.TrainingArguments`.
        dataset_size: examples of the training set; not used where `max_steps` is set.

    Raises:
        ValueError: no examples, and no `max_steps`.
    """
    if args.max_steps > 0:
        return int(args.max_steps)
    if dataset_size < 1:
        raise ValueError(f"dataset_size must be at least 1 where max_steps is not set, got {dataset_size!r}")
    whole = dataset_size / (args.train_batch_size * max(1, args.world_size))
    batches = math.floor(whole) if args.dataloader_drop_last else math.ceil(whole)
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    planned: int = math.ceil(args.num_train_epochs * steps)
    return planned
