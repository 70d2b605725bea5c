"""A run's settings: transformers' TrainingArguments and SimCLR's own, each refused by name if it cannot be."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from simclr_hub.errors import RecipeError

from .optimization import LR_SCALINGS, OPTIMIZERS

LOSSES = ("nt_xent", "dcl")

#: transformers' arguments that a recipe or a setting may name, by what their values are. A recipe may be a stranger's:
#: what uploads, reports, looks for code, reads other files or starts something else is not among them.
_FROM_TRANSFORMERS = {
    "true or false": "bf16 fp16 bf16_full_eval fp16_full_eval tf32 use_cpu torch_compile full_determinism "
    "disable_tqdm logging_first_step logging_nan_inf_filter log_on_each_node save_only_model save_on_each_node "
    "eval_on_start load_best_model_at_end greater_is_better ignore_data_skip dataloader_persistent_workers "
    "ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph",
    "a whole number": "per_device_train_batch_size per_device_eval_batch_size max_steps gradient_accumulation_steps "
    "save_total_limit seed data_seed dataloader_num_workers dataloader_prefetch_factor ddp_timeout ddp_bucket_cap_mb "
    "torch_empty_cache_steps",
    "a number": "num_train_epochs learning_rate warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon "
    "max_grad_norm logging_steps eval_steps eval_delay save_steps",
    "text": "output_dir lr_scheduler_type logging_strategy eval_strategy save_strategy metric_for_best_model "
    "log_level log_level_replica ddp_backend",
    "keys and values": "lr_scheduler_kwargs",
    "none or tensorboard": "report_to",  # which stay on this machine
}
KIND_OF = {name: kind for kind, names in _FROM_TRANSFORMERS.items() for name in names.split()}
_OWN_KINDS = {int: "a whole number", float: "a number", str: "text"}
#: Beyond it no whole number makes sense; workers are processes.
_LARGEST = {"dataloader_num_workers": 256, "dataloader_prefetch_factor": 1024}
_BEYOND = 1 << 40
_MEANT = {
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}

_ALLOWED = {
    "temperature": "must be positive",
    "loss": f"is not one of {', '.join(LOSSES)}",
    **dict.fromkeys(("momentum", "ema_decay", "memory_momentum"), "must be within [0, 1)"),
    "optimizer": f"is not one of {', '.join(OPTIMIZERS)}",
    "lr_scaling": f"is not one of {', '.join(LR_SCALINGS)}",
}


@dataclass
class SimCLRTrainingArguments(TrainingArguments):
    """transformers' arguments, and SimCLR's own.

    Args:
        batch_size: images in the global batch, shared out among all processes; 0: per_device_train_batch_size counts.
        loss: "nt_xent", or "dcl": without the positive in the denominator (arXiv 2110.06848).
        temperature: of the loss.
        optimizer: "lars", "sgd" (Nesterov, as the official momentum optimiser) or "adamw".
        momentum: of LARS and SGD.
        lr_scaling: "none": learning_rate is the peak; "linear": times batch / 256; "sqrt": times the batch's root.
        warmup_epochs: epochs of linear warm-up, when the schedule is the official one, step by step; 0: the
            Trainer's lr_scheduler_type and warmup_steps.
        ema_decay: share of the averaged weights kept at a step; 0 keeps no average.
        gradient_cache: views that are embedded at a time, for batches larger than memory; 0: all at once.
        memory: z of earlier batches that are kept as negatives, made by a momentum encoder (SimCLR v2); 0: none.
        memory_momentum: share of the momentum encoder's weights kept at a step.
        knn_bank: images whose labels vote in a kNN evaluation.
        knn_queries: images that are looked up.

    Raises:
        RecipeError: a value out of range, or several GPUs in one process.
    """

    batch_size: int = field(default=0)
    loss: str = field(default="nt_xent")
    temperature: float = field(default=0.1)
    optimizer: str = field(default="lars")
    momentum: float = field(default=0.9)
    lr_scaling: str = field(default="none")
    warmup_epochs: float = field(default=0)
    ema_decay: float = field(default=0.0)
    gradient_cache: int = field(default=0)
    memory: int = field(default=0)
    memory_momentum: float = field(default=0.999)
    knn_bank: int = field(default=20_000)
    knn_queries: int = field(default=5_000)

    report_to: None | str | list[str] = field(default="none")  # whatever the version of transformers asks for

    def __post_init__(self) -> None:
        for name, allowed in (
            ("temperature", self.temperature > 0),
            ("loss", self.loss in LOSSES),
            ("momentum", 0 <= self.momentum < 1),
            ("ema_decay", 0 <= self.ema_decay < 1),
            ("memory_momentum", 0 <= self.memory_momentum < 1),
            ("optimizer", self.optimizer in OPTIMIZERS),
            ("lr_scaling", self.lr_scaling in LR_SCALINGS),
            *(
                (name, getattr(self, name) >= 0)
                for name in ("batch_size", "warmup_epochs", "gradient_cache", "memory")
            ),
        ):
            if not allowed:
                raise RecipeError(f"{name}={getattr(self, name)} {_ALLOWED.get(name, 'must not be negative')}")
        super().__post_init__()
        self.remove_unused_columns = False
        self.dataloader_drop_last = True
        if self.data_seed is None:  # the order of the images is one for all processes, whatever else they draw
            self.data_seed = self.seed
        self.dataloader_pin_memory = self.device.type == "cuda"
        if self.n_gpu > 1:
            raise RecipeError(
                f"{self.n_gpu} GPUs in one process would be DataParallel, whose BatchNorm sees a part of the batch; "
                f"start `torchrun --nproc-per-node={self.n_gpu} -m simclr_hub.training.pretrain ...`, or set "
                "CUDA_VISIBLE_DEVICES to one GPU"
            )
        if self.gradient_cache == 1:
            raise RecipeError("gradient_cache=1 leaves BatchNorm a single view to normalise; set 2 or more")
        if self.gradient_cache and self.gradient_accumulation_steps > 1:
            raise RecipeError("gradient_cache and gradient_accumulation_steps: the cache alone gives the large batch")
        if self.batch_size:
            if self.batch_size % self.world_size:
                raise RecipeError(f"batch_size={self.batch_size} is not a multiple of the {self.world_size} processes")
            self.per_device_train_batch_size = self.batch_size // self.world_size
        if self.global_batch < 2:
            raise RecipeError(
                f"a batch of {self.global_batch} has no other images to tell apart: set batch_size=2 or more"
            )

    @property
    def global_batch(self) -> int:
        """Images in a step, over all processes."""
        return int(self.per_device_train_batch_size * self.world_size)


def check_settings(settings: Mapping[Any, Any], others: Iterable[str] = ()) -> None:
    """Refuse what a recipe's section `training` may not say, before any of it has an effect.

    Args:
        settings: the section.
        others: keys of other sections, which may have been meant.

    Raises:
        RecipeError: a key that is not among those allowed, or a value of another kind; names it.
    """
    own = {
        name: _OWN_KINDS[kind] for name, kind in SimCLRTrainingArguments.__annotations__.items() if kind in _OWN_KINDS
    }
    kinds = own | KIND_OF
    for name, value in settings.items():
        if name not in kinds:
            if name in SimCLRTrainingArguments.__dataclass_fields__:
                raise RecipeError(
                    f"{name} cannot be set for a run: it would upload, report, or read or run something else; publish "
                    "with `simclr-hub publish`"
                )
            raise RecipeError(unknown("key", name, [*kinds, *others]))
        default = SimCLRTrainingArguments.__dataclass_fields__[name].default
        if not (_is(kinds[name], value) or (value is None and default is None)):
            raise RecipeError(f"{name}={shown(value)} must be {kinds[name]}")
        if isinstance(value, int) and not -1 <= value <= _LARGEST.get(name, _BEYOND):
            raise RecipeError(f"{name}={shown(value)} must lie between 0 and {_LARGEST.get(name, _BEYOND):,}")


def _is(kind: str, value: Any) -> bool:
    """Return whether a value is of a kind."""
    if kind == "true or false" or isinstance(value, bool):
        return kind == "true or false" and isinstance(value, bool)
    if kind == "none or tensorboard":
        return all(v in ("none", "tensorboard") for v in (value if isinstance(value, list) else [value]))
    if kind == "a number":
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, {"a whole number": int, "text": str, "keys and values": dict}[kind])


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
    """Say that there is no such key, and which are close."""
    words, names = str(name), sorted(known, key=len)
    within = [key for key in names if len(words) > 2 and words.lower() in key.rpartition(".")[2].split("_")]
    close = [_MEANT[words]] if words in _MEANT else within or difflib.get_close_matches(words, names, n=3)
    return f"unknown {what} {shown(words)}" + (f"; is it {' or '.join(close[:3])}?" if close else "")


def shown(value: Any) -> str:
    """Return a value in one short line."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
