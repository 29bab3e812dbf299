"""Inside Hugging Face Trainer, accelerate and PyTorch Lightning, as any optimizer; small, offline."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from metaopt_hpo import wrap
from metaopt_hpo.optim import MetaOptimize, StepSizeWarning
from metaopt_hpo.strategies import make

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_hugging_face_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    """Interrupted at a checkpoint and resumed, the run ends where the uninterrupted one does."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    data = example("huggingface_trainer").Periodic()

    def trainer(folder: str):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        opt = MetaOptimize(list(model.named_parameters()), lr=1e-3, meta_lr=0.05)
        schedule = transformers.get_linear_schedule_with_warmup(opt, 2, 12)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=12, per_device_train_batch_size=8, save_steps=6,
            logging_steps=12, report_to="none", disable_tqdm=True, use_cpu=True, max_grad_norm=1.0,
        )  # fmt: skip
        return transformers.Trainer(model, arguments, train_dataset=data, optimizers=(opt, schedule)), opt

    whole, opt = trainer("a")
    whole.train()
    resumed, other = trainer("b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert torch.equal(opt.step_sizes(), other.step_sizes())
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_accelerate_accumulates_and_resumes(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

    def build():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        opt = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.05)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        return accelerator, *accelerator.prepare(model, opt, torch.optim.lr_scheduler.StepLR(opt, 2, 0.5))

    def train(accelerator, model, opt, schedule, steps) -> None:
        for step in steps:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            with accelerator.accumulate(model):
                accelerator.backward((model(x) - x.sum(1, keepdim=True)).square().mean())
                opt.step()
                schedule.step()
                opt.zero_grad()

    parts = build()
    train(*parts, range(8))
    parts[0].save_state(str(tmp_path / "state"))
    train(*parts, range(8, 12))
    again = build()
    again[0].load_state(str(tmp_path / "state"))
    train(*again, range(8, 12))
    assert torch.equal(parts[1].weight, again[1].weight)
    assert torch.equal(parts[2].optimizer.step_sizes(), again[2].optimizer.step_sizes())
    assert float(parts[2].optimizer.state[parts[1].weight]["step"]) == 6


class TestATrainingStepThatIsCompiledWhole:
    """torch.compile over forward, backward and optimizer: the graph breaks at the step."""

    @pytest.mark.parametrize("how", ["optimizer", "wrapped", "run"])
    def test_it_is_the_plain_run(self, how: str) -> None:
        def trained(compiled: bool) -> torch.Tensor:
            torch.manual_seed(0)
            torch._dynamo.reset()
            model = nn.Linear(6, 1)
            if how == "optimizer":
                optimizer = MetaOptimize(model.parameters(), lr=1e-2, meta_lr=0.05)
                step = lambda loss: optimizer.step()  # noqa: E731
            elif how == "wrapped":
                run = wrap(torch.optim.AdamW(model.parameters()), 20, model=model)
                optimizer, step = run.optimizer, run.step
            else:
                own = make("metaoptimize").build(model, 20).as_optimizer()
                optimizer = own

                def step(loss: torch.Tensor) -> None:
                    own.loss = loss
                    own.step()

            def training_step(x: torch.Tensor) -> torch.Tensor:
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
                loss.backward()
                step(loss)
                optimizer.zero_grad()
                return loss

            take = torch.compile(training_step, backend="eager") if compiled else training_step
            for i in range(20):
                take(torch.randn(8, 6, generator=torch.Generator().manual_seed(i)))
            return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        torch.testing.assert_close(trained(True), trained(False))


def test_a_warning_names_the_line_of_the_loop_that_steps() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MetaOptimize([p], lr=1e-2, meta_lr=30.0)

    def loop() -> None:
        for i in range(200):
            p.grad = torch.ones(3) * (1 if i % 2 else -1)
            optimizer.step()

    with pytest.warns(StepSizeWarning) as seen:
        loop()
    assert seen[0].filename == __file__
