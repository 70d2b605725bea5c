"""A run: its settings, transformers' Trainer with whole checkpoints and averages, and SimCLR's own with its loss.

Accumulating gradients gives the mean over small batches, not more negatives, which a gradient cache or a memory does.
"""

import copy
import difflib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from simclr_hub._files import new_directory
from simclr_hub.errors import RecipeError, TrainingError

from .augmentations import Views
from .distributed import global_multi_view_loss, synchronize_batch_norm, use_biased_moving_variance
from .large_batch import MomentumMemory, cached_backward
from .monitor import Meter, Monitor, OnlineClassifier, contrastive_top1
from .optimization import LR_SCALINGS, OPTIMIZERS, create_optimizer, official_steps, scale_learning_rate, warmup_cosine
from .protocols import features, knn_accuracy

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
    "alpha": "must be within [0, 1]",
    "optimizer": f"is not one of {', '.join(OPTIMIZERS)}",
    "lr_scaling": f"is not one of {', '.join(LR_SCALINGS)}",
}


@dataclass
class RunArguments(TrainingArguments):
    """transformers' arguments, and those of every run here.

    Args:
        batch_size: images in the global batch, shared out among all processes; 0: per_device_train_batch_size counts.
        optimizer: "lars", "sgd" (Nesterov, as the official momentum optimiser) or "adamw".
        momentum: of LARS and SGD.
        lr_scaling: "none": learning_rate is the peak; "linear": times batch / 256; "sqrt": times the batch's root.
        warmup_epochs: epochs of linear warm-up, step by step.
        ema_decay: share of the averaged weights kept at a step; 0 keeps no average.

    Raises:
        RecipeError: a value out of range, or several GPUs in one process.
    """

    batch_size: int = field(default=0)
    optimizer: str = field(default="lars")
    momentum: float = field(default=0.9)
    lr_scaling: str = field(default="none")
    warmup_epochs: float = field(default=0)
    ema_decay: float = field(default=0.0)

    command: ClassVar[str] = "pretrain"
    report_to: None | str | list[str] = field(default="none")  # whatever the version of transformers asks for

    def __post_init__(self) -> None:
        self.check(
            momentum=0 <= self.momentum < 1,
            ema_decay=0 <= self.ema_decay < 1,
            optimizer=self.optimizer in OPTIMIZERS,
            lr_scaling=self.lr_scaling in LR_SCALINGS,
            batch_size=self.batch_size >= 0,
            warmup_epochs=self.warmup_epochs >= 0,
        )
        super().__post_init__()
        self.remove_unused_columns = False
        self.dataloader_drop_last = True
        if self.data_seed is None:  # the order of the images is one for all processes, whatever else they draw
            self.data_seed = self.seed
        self.dataloader_pin_memory = self.device.type == "cuda"
        if self.n_gpu > 1:
            raise RecipeError(
                f"{self.n_gpu} GPUs in one process would be DataParallel, whose BatchNorm sees a part of the batch; "
                f"start `torchrun --nproc-per-node={self.n_gpu} -m simclr_hub.training.{self.command} ...`, or set "
                "CUDA_VISIBLE_DEVICES to one GPU"
            )
        if self.batch_size:
            if self.batch_size % self.world_size:
                raise RecipeError(f"batch_size={self.batch_size} is not a multiple of the {self.world_size} processes")
            self.per_device_train_batch_size = self.batch_size // self.world_size
        if self.global_batch < 2:
            raise RecipeError(
                f"a batch of {self.global_batch} has no other images to tell apart: set batch_size=2 or more"
            )

    def check(self, **allowed: bool) -> None:
        """Refuse the first key whose value is not allowed.

        Raises:
            RecipeError: names it.
        """
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise RecipeError(f"{name}={getattr(self, name)} {_ALLOWED.get(name, 'must not be negative')}")

    @property
    def global_batch(self) -> int:
        """Return the images in a step, over all processes."""
        return int(self.per_device_train_batch_size * self.world_size)


@dataclass
class SimCLRTrainingArguments(RunArguments):
    """The arguments of pretraining.

    Args:
        loss: "nt_xent", or "dcl": without the positive in the denominator (arXiv 2110.06848).
        temperature: of the loss.
        warmup_epochs: with any the schedule is the official one; 0: the Trainer's lr_scheduler_type and warmup_steps.
        gradient_cache: views that are embedded at a time, for batches larger than memory; 0: all at once.
        memory: z of earlier batches that are kept as negatives, made by a momentum encoder (SimCLR v2); 0: none.
        memory_momentum: share of the momentum encoder's weights kept at a step.
        knn_bank: images whose labels vote in a kNN evaluation.
        knn_queries: images that are looked up.

    Raises:
        RecipeError: a value out of range, or several GPUs in one process.
    """

    loss: str = field(default="nt_xent")
    temperature: float = field(default=0.1)
    gradient_cache: int = field(default=0)
    memory: int = field(default=0)
    memory_momentum: float = field(default=0.999)
    knn_bank: int = field(default=20_000)
    knn_queries: int = field(default=5_000)

    def __post_init__(self) -> None:
        self.check(
            temperature=self.temperature > 0,
            loss=self.loss in LOSSES,
            memory_momentum=0 <= self.memory_momentum < 1,
            gradient_cache=self.gradient_cache >= 0,
            memory=self.memory >= 0,
        )
        super().__post_init__()
        if self.gradient_cache == 1:
            raise RecipeError("gradient_cache=1 leaves BatchNorm a single view to normalise; set 2 or more")
        if self.gradient_cache and self.gradient_accumulation_steps > 1:
            raise RecipeError("gradient_cache and gradient_accumulation_steps: the cache alone gives the large batch")


def check_settings(settings: Mapping[Any, Any], kind: type[RunArguments], others: Iterable[str] = ()) -> None:
    """Refuse what a recipe's section `training` may not say, before any of it has an effect.

    Args:
        settings: the section.
        kind: what it is for.
        others: keys of other sections, which may have been meant.

    Raises:
        RecipeError: a key that is not among those allowed, or a value of another kind; names it.
    """
    ours = [one for one in kind.__mro__ if issubclass(one, RunArguments)]
    own = {name: _OWN_KINDS[k] for one in ours for name, k in one.__annotations__.items() if k in _OWN_KINDS}
    kinds = own | KIND_OF
    for name, value in settings.items():
        if name not in kinds:
            if name in kind.__dataclass_fields__:
                raise RecipeError(
                    f"{name} cannot be set for a run: it would upload, report, or read or run something else; publish "
                    "with `simclr-hub publish`"
                )
            raise RecipeError(unknown("key", name, [*kinds, *others]))
        default = kind.__dataclass_fields__[name].default
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


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights and BatchNorm's statistics, warmed up over the first steps."""

    def __init__(self, model: PreTrainedModel, decay: float):
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average towards the model."""
        model: nn.Module = kwargs["model"]
        keep = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for ours, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs.to(ours.dtype), 1 - keep)
            else:
                ours.copy_(theirs)


class Epochs(TrainerCallback):
    """Tells a data set that draws views how far the run is; accelerate's data loaders do not in a distributed run."""

    def __init__(self, dataset: Any, args: SimCLRTrainingArguments):
        self.dataset = dataset
        self.steps = len(dataset) // (args.global_batch * args.gradient_accumulation_steps)  # of an epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the data set the epoch, before the data loader's workers start."""
        epoch = int(state.epoch or 0)
        self.dataset.set_epoch(epoch, epoch * self.steps / max(state.max_steps, 1))


class Memory(TrainerCallback):
    """The momentum encoder and its queue, moved after each step."""

    def __init__(self, model: PreTrainedModel, args: SimCLRTrainingArguments):
        self.module = MomentumMemory(model, args.memory, args.memory_momentum).to(args.device).train()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the momentum encoder towards the model."""
        self.module.update(kwargs["model"])


class RunTrainer(Trainer):
    """transformers' Trainer with the official BatchNorm, an average, and checkpoints that are whole or not there."""

    args: RunArguments
    model: nn.Module
    train_dataset: Any
    eval_dataset: Any
    loss_is_scaled_for_ga = False  # compute_loss gives a mean; the Trainer divides it by the accumulation steps
    #: Parts without which a checkpoint is not gone on from.
    needed: tuple[str, ...] = ()

    def __init__(self, model: PreTrainedModel, args: RunArguments, **kwargs: Any):
        if args.world_size > 1:
            synchronize_batch_norm(model, args.device)
        use_biased_moving_variance(model)
        super().__init__(model=model, args=args, data_collator=default_collate, **kwargs)
        self.monitor = Meter()
        self._partial: str | None = None  # where a checkpoint is being written
        self.average = WeightAverage(model, args.ema_decay) if args.ema_decay > 0 else None
        if self.average is not None:
            self.add_callback(self.average)

    @property
    def result(self) -> Any:
        """Return what the run is for: the averaged model if there is one."""
        return self.accelerator.unwrap_model(self.model) if self.average is None else self.average.model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make LARS over SimCLR's parameter groups, or what `args.optimizer` names."""
        if self.optimizer is None:
            args = self.args
            lr = scale_learning_rate(args.learning_rate, args.global_batch, args.lr_scaling)
            self.optimizer = create_optimizer(self.model, args.optimizer, lr, args.weight_decay, args.momentum)
        return self.optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Get the Trainer's batches, and count the time that it takes."""
        with self.monitor.waiting():
            return super().get_batch_samples(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return self._partial or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside its place and rename it there whole, then drop the older ones."""
        output_dir = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        if (output_dir / name).exists():  # saved at this step already (the last step is also an epoch's end)
            return
        self.check_finite()
        first = self.args.process_index == 0  # the others only add their random states
        with new_directory(output_dir / name) if first else nullcontext(None) as partial:
            shared = [str(partial)]
            broadcast_object_list(shared)
            try:
                self._partial = shared[0]
                super()._save_checkpoint(model, trial)
            finally:
                self._partial = None
            self.accelerator.wait_for_everyone()
            if partial is not None:
                for path in (partial / name).iterdir():
                    os.replace(path, partial / path.name)
                (partial / name).rmdir()
                if self.average is not None:
                    self.average.model.save_pretrained(partial / "ema")
                for part, module in self._parts():
                    state = {key: value.contiguous() for key, value in module.state_dict().items()}
                    save_file(state, partial / f"{part}.safetensors")
        self.accelerator.wait_for_everyone()
        if first:
            self._drop_old(output_dir)

    def check_finite(self) -> None:
        """Raise if a loss so far, or a weight now, is not finite: an update can break what its own loss did not show.

        Raises:
            TrainingError: names the step.
        """
        self.monitor.check_finite()
        if not bool(torch.stack([p.detach().sum() for p in self.model.parameters()]).isfinite().all()):
            raise TrainingError(
                f"weights are not finite after step {self.state.global_step}; the last checkpoint is from before it. "
                "Lower learning_rate, or lengthen warm-up"
            )

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Return what else goes on where it was when a run is resumed."""
        yield from ()

    def _drop_old(self, output_dir: Path) -> None:
        keep = self.args.save_total_limit or 0
        if keep > 0:
            for old in map(Path, sort_checkpoints(str(output_dir))[:-keep]):
                away = old.with_name(f".{old.name}.dropped")  # a kill must not leave half of it under its name
                shutil.rmtree(away, ignore_errors=True)
                os.replace(old, away)
                shutil.rmtree(away)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            weights = Path(resume_from_checkpoint, "ema", "model.safetensors")
            if not weights.exists():
                raise RecipeError(
                    f"{resume_from_checkpoint} has no averaged weights to go on from; "
                    "set ema_decay=0 as when it was made, or another output_dir="
                )
            self.average.model.load_state_dict(load_file(weights))
        for part, module in self._parts():
            path = Path(resume_from_checkpoint, f"{part}.safetensors")
            if path.exists():
                module.load_state_dict(load_file(path))
            elif part in self.needed:
                raise RecipeError(f"{resume_from_checkpoint} has no {part} to go on from; set another output_dir=")


class SimCLRTrainer(RunTrainer):
    """Pretrains a `SimCLRModel`; `views` draws the k views of each image, unless the data loader's workers did.

    Batches hold "images", uint8 (N, 3, side, side), or "views", (N, k, 3, size, size); and perhaps "labels", (N,).
    """

    args: SimCLRTrainingArguments
    monitor: Monitor
    needed = ("memory",)

    def __init__(self, model: PreTrainedModel, args: SimCLRTrainingArguments, views: Views, **kwargs: Any):
        super().__init__(model, args, **kwargs)
        self.views = views
        self.monitor = Monitor()
        self.memory = Memory(model, args) if args.memory else None
        epochs = Epochs(self.train_dataset, args) if hasattr(self.train_dataset, "set_epoch") else None
        for callback in (self.memory, epochs):
            if callback is not None:
                self.add_callback(callback)
        labels = getattr(self.train_dataset, "labels", None)
        self.probe: OnlineClassifier | None = None
        if labels is not None:
            classes = int(max(labels)) + 1
            self.probe = OnlineClassifier(model.config.hidden_size, classes, args.weight_decay, args.momentum)
            self.probe.to(args.device)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the official warm-up and cosine if `args.warmup_epochs` asks for it, else the Trainer's schedule."""
        if not self.args.warmup_epochs:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            images, batch = len(self.train_dataset), self.args.global_batch
            warmup, _ = official_steps(images, batch, 0, self.args.warmup_epochs)
            self.lr_scheduler = warmup_cosine(optimizer or self.create_optimizer(), warmup, num_training_steps + 1)
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run the Trainer's step, or with `args.gradient_cache` one in pieces that are embedded twice."""
        if not self.args.gradient_cache:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        pixels = self._pixels(inputs)
        pieces = pixels.tensor_split(math.ceil(len(pixels) / self.args.gradient_cache))  # alike: none is a single view
        features: list[Tensor] = []  # h of the first pass, for the probe

        def embed(piece: Tensor) -> Tensor:
            h, z = _embed(model, piece)
            if not torch.is_grad_enabled():
                features.append(h)
            return z

        def loss_of(z: Tensor) -> Tensor:
            loss = self._loss(z, pieces)
            self._watch(loss, z, torch.cat(features), inputs.get("labels"))
            return loss

        no_sync = partial(self.accelerator.no_sync, model=model)
        return cached_backward(model, pieces, embed, loss_of, backward=self.accelerator.backward, no_sync=no_sync)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss between the views of each image, in one pass, so that BatchNorm sees all."""
        pixels = self._pixels(inputs)
        h, z = _embed(model, pixels)
        loss = self._loss(z, (pixels,))
        self._watch(loss, z, h, inputs.get("labels"))
        return (loss, {"h": h, "z": z}) if return_outputs else loss

    def _pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return all first views, then all second ones, and so on: (kN, 3, size, size)."""
        if "views" in inputs:
            views = inputs["views"].transpose(0, 1)
        else:
            views = self.views.at(self.state.global_step / max(self.state.max_steps, 1)).batch(inputs["images"])
        return views.flatten(0, 1).contiguous(memory_format=torch.channels_last)

    def _loss(self, z: Tensor, pieces: Sequence[Tensor]) -> Tensor:
        """Compute the loss of z (kN, d) against all processes' z, or against the memory's of the same views."""
        count, decoupled = self.views.count, self.args.loss == "dcl"
        if self.memory is None:
            views = z.view(count, -1, z.shape[1])
            return global_multi_view_loss(views, self.args.temperature, decoupled=decoupled)
        with self.accelerator.autocast():
            keys = torch.cat([self.memory.module.embed(piece) for piece in pieces])  # (kN, d)
        return self.memory.module.loss(z, keys, self.args.temperature, views=count, decoupled=decoupled)

    def _watch(self, loss: Tensor, z: Tensor, h: Tensor, labels: Tensor | None) -> None:
        first, second, *_ = z.chunk(self.views.count)
        values = {"contrastive_top1": contrastive_top1(first, second)}
        if self.probe is not None and labels is not None:
            # The encoder's own rate, as officially, where that is of the same optimiser.
            lr = self.create_optimizer().param_groups[0]["lr"] if self.args.optimizer == "lars" else 0.1
            _, values["probe_top1"] = self.probe.step(h, labels.repeat(self.views.count), lr)
        self.monitor.add(self.state.global_step + 1, loss.detach(), z, values, self.views.count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the monitor saw since the last log."""
        if "loss" in logs:  # of training
            logs.update(self.monitor.means(self.views.count * self.args.global_batch))
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the nearest neighbours' accuracy in percent: `eval_dataset` among the training images, by h."""
        metrics = {"eval_knn": self.knn()[0]} if self.args.process_index == 0 else {}
        self.log(metrics)
        return metrics

    def knn(self) -> tuple[float, int]:
        """Measure the nearest neighbours' accuracy in percent by h as it is now; and on how many images.

        Without `eval_dataset` every tenth of the training images is looked up among the others.
        """
        if self.eval_dataset is not None:
            bank = features(self.result, self.train_dataset, self.args.knn_bank)
            queries = features(self.result, self.eval_dataset, self.args.knn_queries)
        else:
            h, labels = features(self.result, self.train_dataset, self.args.knn_queries)
            asked = torch.arange(len(h)) % 10 == 9
            bank, queries = (h[~asked], labels[~asked]), (h[asked], labels[asked])
        return knn_accuracy(*queries, *bank)[0], len(queries[0])

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        if self.probe is not None:
            yield "probe", self.probe
        if self.memory is not None:
            yield "memory", self.memory.module


def _embed(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Embed views (B, 3, H, W): h (B, D) and z (B, d); without g, z is h."""
    outputs = model(pixels, output_projections=True)
    return outputs.pooler_output, outputs.projections[-1] if outputs.projections else outputs.pooler_output
