"""Inside Hugging Face's Trainer and accelerate: same steps, resumed bitwise, live step size in the logs."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.as_optimizer import LRSetTwice, NoLoss
from metaopt_hpo.strategies.errors import RunWarning
from metaopt_hpo.training import horizon_of

transformers = pytest.importorskip("transformers")
STEPS = 24


class Net(nn.Module):
    """As Trainer wants it: a loss in the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(x) - labels).square().mean()}


def data() -> list[dict[str, torch.Tensor]]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "labels": row[:1].abs()} for row in x]


def trainer(folder: Path, kind: str = "wrap", schedule: bool = True, **options: Any) -> Any:
    torch.manual_seed(0)
    model = Net()
    if kind == "wrap":
        run = wrap(torch.optim.AdamW(model.parameters()), STEPS, model)
    else:
        run = make(kind).build(model, STEPS)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_steps=10,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    pair = run.as_optimizers() if schedule else (run.as_optimizer(), None)
    return transformers.Trainer(model, arguments, train_dataset=data(), optimizers=pair), run, model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["wrap", "metaoptimize"])
def test_trainer_runs_all_phases_logs_the_step_size_and_resumes_bitwise(tmp_path: Path, kind: str) -> None:
    whole, run, model = trainer(tmp_path, kind)
    whole.train()
    assert run.steps_taken == run.horizon == STEPS
    logged = [entry["learning_rate"] for entry in whole.state.log_history if "learning_rate" in entry]
    assert logged[-1] == run.group_step_sizes()[0].item()
    assert len(set(logged)) > 8
    assert run.guard.state_dict()["first"] > 0  # it heard the loss
    again, other, resumed = trainer(tmp_path, kind)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert torch.equal(weights(model), weights(resumed))
    assert other.steps_taken == STEPS


def test_trainers_own_scheduler_is_named_and_not_used(tmp_path: Path) -> None:
    first, _, model = trainer(tmp_path / "a")
    first.train()
    second, _, other = trainer(tmp_path / "b", schedule=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        second.train()
    assert any(issubclass(w.category, LRSetTwice) for w in said)
    assert torch.equal(weights(model), weights(other))


def test_accelerate_with_accumulation_and_its_checkpoints(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def loop(load: Path | None = None, save_at: int | None = None) -> torch.Tensor:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        torch.manual_seed(0)
        model = Net()
        run = wrap(torch.optim.AdamW(model.parameters()), 20, model)
        loader = torch.utils.data.DataLoader(data(), batch_size=8)
        model, optimizer, scheduler, loader = accelerator.prepare(model, *run.as_optimizers(), loader)
        if load is not None:
            accelerator.load_state(str(load))
        for epoch in range(run.steps_taken // 4, 5):
            if epoch == save_at:
                accelerator.save_state(str(tmp_path / "state"))
            for batch in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch)["loss"])
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
        assert run.steps_taken == run.horizon
        assert scheduler.get_last_lr() == run.group_step_sizes().tolist()
        return weights(model)

    whole = loop(save_at=2)
    assert torch.equal(loop(load=tmp_path / "state"), whole)


@pytest.mark.parametrize("planned", [{"max_steps": 5}, {"num_train_epochs": 2}, {"num_train_epochs": 1.5}])
@pytest.mark.parametrize("drop", [False, True])
def test_the_horizon_is_the_steps_that_trainer_takes(
    tmp_path: Path, planned: dict[str, Any], drop: bool
) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        gradient_accumulation_steps=4,
        dataloader_drop_last=drop,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **planned,
    )
    taken = transformers.Trainer(Net(), arguments, train_dataset=data()[:50])
    taken.train()
    assert horizon_of(arguments, 50) == taken.state.global_step


def test_a_horizon_of_no_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset_size must be at least 1"):
        horizon_of(transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True), 0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_loss_of_a_compiled_model_is_heard(tmp_path: Path) -> None:
    torch.compiler.reset()
    compiled, run, _ = trainer(tmp_path, torch_compile=True, torch_compile_backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoLoss)
        compiled.train()
    assert run.guard.state_dict()["first"] > 0


def test_a_trainer_that_takes_more_steps_than_planned_says_so(tmp_path: Path) -> None:
    longer, run, _ = trainer(tmp_path)
    longer.args.max_steps = STEPS + 4
    with pytest.warns(RunWarning, match=f"planned for {STEPS} steps"):
        longer.train()
    assert run.steps_taken == STEPS + 4
