"""MetaOptimize inside Hugging Face's Trainer: hand it over with any scheduler; the scheduler multiplies the
step size.

Runs offline in a few seconds: a two-layer GPT-2 with random weights learns a periodic sequence.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from metaopt_hpo import MetaOptimize

STEPS = 60


class Periodic(torch.utils.data.Dataset):
    """Sequences 0, 1, 2, … modulo 11, from a random start."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index) % 11
        return {"input_ids": tokens, "labels": tokens}


def main() -> tuple[float, float]:
    """Train and return (first logged loss, last logged loss)."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    decay = [(n, p) for n, p in model.named_parameters() if p.ndim > 1]
    rest = [(n, p) for n, p in model.named_parameters() if p.ndim <= 1]
    optimizer = MetaOptimize(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3, meta_lr=1e-2
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            logging_steps=10,
            save_steps=30,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=Periodic(), optimizers=(optimizer, schedule))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = float(optimizer.step_sizes()[0])
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}; step size found: {found:.2e}")
    return float(losses[0]), float(losses[-1])


if __name__ == "__main__":
    main()
