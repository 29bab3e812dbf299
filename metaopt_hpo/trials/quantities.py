"""Where size, tokens, batch, lr and loss are found: the names that other tools and people give them.

One home for them: a table's columns, an Optuna trial's parameters and attributes and a Ray trial's config are all
asked here. A *strong* name can mean nothing else and is taken without a question; a *weak* one (`batch_size`, which
counts sequences; `D`) is only suggested. No pandas here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CONFIG_PREFIXES = ("config", "params", "param", "hparams", "hyperparameters", "args", "train_loop_config")
"""Parts in front of a name that say "this was set before the run": Ray, W&B, Optuna, MLflow."""

OTHER_PREFIXES = (
    "user_attrs", "user_attr", "summary", "summarymetrics", "metrics", "metric", "data", "tags", "result",
)  # fmt: skip
"""Parts in front of a name that tools add to what a run reported, or to what was noted about it."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One quantity of a trial: its own name, its unit, and what else it is called (normalised, see `normalise`).

    Attributes:
        strong: names that can mean nothing else.
        weak: names that often mean it, but in another unit or of another kind; suggested, never taken.
        setting: set before the run, so that a config's entry counts before a reported value of the same name.
    """

    name: str
    unit: str
    strong: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    setting: bool = False


QUANTITIES: dict[str, Quantity] = {
    q.name: q
    for q in (
        Quantity(
            "size", "parameters",
            ("num_params", "n_params", "nparams", "num_parameters", "n_parameters", "model_params",
             "non_embedding_params", "non_embedding_parameters", "n_non_embedding", "trainable_params",
             "trainable_parameters", "non_embedding_param_size", "param_count", "parameter_count"),
            ("n", "params", "parameters", "model_size", "total_params", "total_parameters", "params_m", "params_b",
             "size_m", "size_b", "model"),
            setting=True,
        ),
        Quantity(
            "tokens", "tokens",
            ("train_tokens", "training_tokens", "num_tokens", "n_tokens", "total_tokens", "token_budget",
             "num_train_tokens"),
            ("d", "tokens_seen", "num_input_tokens_seen", "num_tokens_seen", "consumed_tokens", "max_tokens",
             "tokens_processed", "data_size", "dataset_size", "train_samples", "consumed_samples", "tokens_b",
             "tokens_m"),
            setting=True,
        ),
        Quantity(
            "batch", "tokens per step",
            ("batch_tokens", "tokens_per_step", "tokens_per_batch", "batch_size_tokens", "global_batch_tokens",
             "batch_size_in_tokens", "total_batch_size_tokens"),
            ("b", "bs", "bsz", "gbsz", "gbs", "batch_size", "batchsize", "global_batch_size", "global_batch",
             "train_batch_size", "total_batch_size", "per_device_train_batch_size", "batch_k", "batch_m"),
            setting=True,
        ),
        Quantity(
            "lr", "-",
            ("learning_rate", "learningrate", "peak_lr", "max_lr", "base_lr", "peak_learning_rate",
             "max_learning_rate", "optim_lr", "optimizer_lr", "optimizer_learning_rate"),
            ("eta", "init_lr", "initial_lr", "lr_max", "alpha", "train_learning_rate", "step_size"),
            setting=True,
        ),
        Quantity(
            "loss", "nats per token",
            ("val_loss", "eval_loss", "valid_loss", "validation_loss", "loss_val", "loss_eval", "heldout_loss",
             "held_out_loss", "final_val_loss", "final_eval_loss"),
            ("train_loss", "training_loss", "lm_loss", "test_loss", "final_loss", "best_val_loss", "value", "l",
             "train_loss_epoch", "objective", "cross_entropy", "nll"),
        ),
        Quantity("seed", "-", ("random_seed", "rng_seed", "training_seed"), ("seeds", "replicate"), setting=True),
        Quantity("unique_tokens", "tokens", ("dataset_tokens", "num_unique_tokens", "corpus_tokens")),
        Quantity("epochs", "-", ("num_train_epochs", "num_epochs", "n_epochs"), ("epoch",)),
        Quantity("steps", "optimizer steps", ("num_steps", "train_steps", "num_train_steps", "optimizer_steps"),
                 ("max_steps", "iterations", "global_step", "step", "iteration")),
        Quantity("target_tokens", "tokens", ("planned_tokens", "tokens_planned"), setting=True),
        Quantity("seconds", "s", ("runtime", "train_runtime", "time_total_s", "duration", "wall_time", "wall_clock",
                                  "walltime", "elapsed"), ("time",)),
        Quantity("cost", "FLOPs", ("flops", "total_flos", "total_flops", "train_flops"), ("c", "flos", "compute")),
        Quantity("state", "", ("status", "run_state", "trial_state", "run_status"), ("result",)),
        Quantity("trial", "", ("trial_id", "run_id", "trial_number", "run_uuid"),
                 ("id", "number", "run", "run_name", "trial_name", "job_name", "name", "experiment_tag")),
    )
}  # fmt: skip

PROGRESS = (
    "tokens_seen", "num_input_tokens_seen", "num_tokens_seen", "consumed_tokens", "tokens_processed", "tokens",
    "training_iteration", "global_step", "step",
    "steps", "iteration", "iter", "epoch", "timesteps_total", "time_total_s", "runtime", "timestamp", "checkpoint",
)  # fmt: skip
"""Names of what grows within a run, those that count tokens first."""

PROGRESS_TOKENS = PROGRESS[:6]
"""Those that count training tokens seen so far."""

PROGRESS_STEPS = PROGRESS[7:10]
"""Those that count optimizer steps."""

RUN_IDS = (
    "trial_id", "run_id", "run_uuid", "trial", "experiment_tag", "trial_name", "id", "run", "run_name", "job_name",
    "experiment_id", "version", "number", "trial_number", "name",
)  # fmt: skip
"""Names of what tells runs apart, surest first."""


def normalise(name: object) -> str:
    """A name in lower case with `_` between its words, whatever stood there ("Learning Rate", "learningRate")."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", str(name))
    return re.sub(r"[^0-9a-z]+", "_", text.lower()).strip("_")


def parts(name: object) -> tuple[str, str]:
    """The kind of prefix in front of a column's name ("config", "other" or "") and the normalised rest."""
    text = str(name)
    for kind, prefixes in (("config", CONFIG_PREFIXES), ("other", OTHER_PREFIXES)):
        for prefix in prefixes:
            joint = (
                "[./:_]" if prefix in ("params", "user_attrs") else "[./:]"
            )  # Optuna's data frames write "_"
            found = re.match(rf"{prefix}{joint}(?=.)", text, re.IGNORECASE)
            if found:
                inner, rest = parts(text[found.end() :])
                return inner or kind, rest
    return "", normalise(text)


def candidates(names: Iterable[object], quantity: str, *, weak: bool = False) -> list[str]:
    """The columns that may hold a quantity, likeliest first; several of the first rank are an open question.

    Args:
        names: columns of a table, or keys of a flat mapping.
        quantity: one of `QUANTITIES`.
        weak: names that only suggest it too.
    """
    q = QUANTITIES[quantity]
    ranked: list[tuple[int, int, str]] = []
    for i, name in enumerate(names):
        kind, rest = parts(name)
        if not isinstance(name, str):
            continue
        inner = normalise(re.split(r"[./]", name)[-1])
        counted = _without_unit(rest) if weak else ""
        for rank, known in enumerate(((q.name,), q.strong, q.weak if weak else ())):
            if rank == 2 and counted in (q.name, *q.strong, *q.weak):
                ranked.append((20, i, name))
                break
            if rest in known or normalise(name) in known or (rank < 2 and kind and inner in known):
                place = 0 if (kind == "config") == q.setting else 1
                if name == q.name and not q.setting:
                    place = 0
                ranked.append((10 * rank + place, i, name))
                break
    return [name for _, _, name in sorted(ranked)]


def _without_unit(name: str) -> str:
    """A normalised name without the unit at its end: `n` for "N (M)"; empty where it has none."""
    bare, _, last = name.rpartition("_")
    return (
        bare if last in (*IN_UNITS, *IN_UNITS.values(), *(u[:-1] for u in IN_UNITS.values()), *TOKENS) else ""
    )


TOKENS = ("tok", "toks", "tokens", "token")


def find(names: Iterable[object], quantity: str) -> str | None:
    """The one column that holds a quantity; None where there is none, or several with an equal claim.

    Its own name comes first; for a setting, a config's entry (`config/lr`) before a reported value of the same
    name (`lr`): a scheduler's current lr is not the trial's. A column `loss` beside `val_loss` is most often the
    loss on the training data, so that neither is taken.
    """
    names = list(names)
    own = candidates(names, quantity)
    if not own or (quantity == "loss" and parts(own[0])[1] == "loss" and held_out(names)):
        return None
    first = [n for n in own if _rank(n, quantity) == _rank(own[0], quantity)]
    return own[0] if len(first) == 1 else None


HELD_OUT = ("val", "valid", "validation", "eval", "evaluation", "test", "dev", "heldout", "holdout", "held")
"""Words of a name that say the loss is one on data that was not trained on."""

NO_LOSS = ("std", "stderr", "sem", "se", "var", "ci", "fn", "weight", "steps", "interval", "every")
"""Words of a name that say it holds something about a loss."""


def held_out(names: Iterable[object]) -> list[str]:
    """The columns whose names say that they hold a loss on held-out data; settings are none."""
    out = []
    for name in names:
        kind, rest = parts(name)
        words = set(rest.split("_"))
        says = "loss" in words and words & set(HELD_OUT) and not words & set(NO_LOSS)
        if isinstance(name, str) and kind != "config" and says:
            out.append(name)
    return out


def _rank(name: str, quantity: str) -> tuple[bool, str]:
    q = QUANTITIES[quantity]
    kind, rest = parts(name)
    return (rest == q.name, kind)


def flatten(values: Mapping[str, Any], separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by `separator`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out.update(flatten(value, separator, f"{name}{separator}"))
        else:
            out[name] = value
    return out


def look_up(values: Mapping[str, Any], quantity: str, source: str | None = None) -> Any:
    """A quantity of a trial's own mapping (parameters, attributes, config, result); None where there is none.

    Args:
        values: flat or nested.
        quantity: one of `QUANTITIES`.
        source: the key to read, parts of a nested one separated by "/" or "."; without one, or where it is the
            quantity's own name and absent, the names of `QUANTITIES` are tried.
    """
    if source is not None:
        found = at(values, source)
        if found is not None or source != quantity:
            return found
    flat = flatten(values)
    name = find(flat, quantity)
    return None if name is None else flat[name]


def at(values: Mapping[str, Any], path: str) -> Any:
    """The entry at `path`, as one key or as nested ones separated by "/" or "."; None where there is none."""
    if path in values:
        return values[path]
    for separator in ("/", "."):
        value: Any = values
        for part in path.split(separator):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            return value
    return None


def positive(value: Any) -> float | None:
    """A finite number above zero as a plain float, NumPy's scalars and 0-d arrays included; else None."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # a whole number that no float holds
        return None
    return number if math.isfinite(number) and number > 0 else None


IN_UNITS = {"k": "thousands", "m": "millions", "b": "billions", "t": "trillions"}

IN_SEQUENCES = ("bs", "bsz", "gbsz", "gbs", "batch_size", "batchsize", "global_batch_size", "global_batch",
                "train_batch_size", "total_batch_size", "per_device_train_batch_size", "train_samples",
                "consumed_samples")  # fmt: skip
"""Names of columns that count sequences, most often."""


def number(value: Any) -> float | None:
    """A real scalar of Python's, NumPy's or torch's as a float; None for anything else, texts and booleans included."""
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return float(value)
    if value is None or kind is bool or isinstance(value, str | bytes):
        return None
    if getattr(value, "ndim", 0) != 0 or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def loss_unit(name: str) -> str:
    """What a loss is counted in by its name, if not in nats per token: "perplexity", "bits", "bits per byte", or ""."""
    words = set(normalise(name).split("_"))
    if words & {"ppl", "perplexity"}:
        return "perplexity"
    if words & {"bpb", "bpc"} or {"bits", "byte"} <= words:
        return "bits per byte"
    return "bits" if words & {"bits", "bpt"} else ""


def unit_hint(name: str) -> str | None:
    """The unit that a column's name suggests: `params_m` millions, `batch_size` sequences; None where it says none."""
    if (loss := loss_unit(name)) in ("perplexity", "bits"):
        return loss
    words = normalise(name).split("_")
    if len(words) > 1 and words[-1] in IN_UNITS:
        return IN_UNITS[words[-1]]
    for word, unit in (
        ("millions", "millions"),
        ("million", "millions"),
        ("billions", "billions"),
        ("billion", "billions"),
    ):
        if word in words:
            return unit
    return "sequences" if normalise(re.split(r"[./]", name)[-1]) in IN_SEQUENCES else None


def did_you_mean(name: str, names: Iterable[object], quantity: str | None = None) -> list[str]:
    """Up to three names that were perhaps meant: suggested by the quantity, then near in spelling."""
    known = [str(n) for n in names]
    out = candidates(known, quantity, weak=True) if quantity in QUANTITIES else []
    if quantity == "loss":
        out = list(dict.fromkeys([*held_out(out), *held_out(known), *out]))
    if quantity == "loss" and not out:
        losses = [n for n in known if "loss" in normalise(n)] or [n for n in known if loss_unit(n)]
        out = sorted(losses, key=lambda n: "train" in normalise(n))
    lower = {normalise(n): n for n in reversed(known)}
    near = difflib.get_close_matches(normalise(name), list(lower), n=3, cutoff=0.6)
    return list(dict.fromkeys([*out, *(lower[n] for n in near)]))[:3]
