"""Hugging Face's Trainer without a learning rate: wrap the optimizer, and hand both halves of the run over.

Runs offline in a few seconds: a two-layer GPT-2 with random weights learns a periodic sequence, beside the Trainer's
default optimizer (AdamW, lr 5e-5, linear decay) and the same AdamW at lr 1e-3.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from metaopt_hpo import wrap

STEPS = 100


class Periodic(torch.utils.data.Dataset):
    """Sequences 0, 1, 2, … modulo 11, from a random start."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) + index) % 11
        return {"input_ids": tokens, "labels": tokens}


def network() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def train(model: GPT2LMHeadModel, lr: float = 5e-5, **options: Any) -> float:
    """Train and return the loss on the data at the end."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=lr,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=Periodic(), eval_dataset=Periodic(), **options)
        trainer.train()
        return float(trainer.evaluate()["eval_loss"])


def with_adamw(lr: float = 5e-5) -> float:
    """Trainer's own optimizer, at its default lr or another."""
    model = network()
    return train(model, lr=lr)


def with_wrap() -> tuple[float, float]:
    """The same optimizer, its lr found."""
    model = network()
    run = wrap(torch.optim.AdamW(model.parameters()), horizon=STEPS, model=model)  # its lr is found
    return train(model, optimizers=run.as_optimizers()), float(run.found_lr)


def main() -> tuple[float, float]:
    """Return the held-out loss of (ours, the better of the two AdamW runs) after printing all."""
    default, larger = with_adamw(), with_adamw(lr=1e-3)
    ours, lr = with_wrap()
    print(
        f"loss after {STEPS} steps: Trainer's default {default:.4f}, at lr 1e-3 {larger:.4f}; "
        f"wrapped {ours:.4f}, which found lr {lr:.1e}"
    )
    return ours, min(default, larger)


if __name__ == "__main__":
    main()
