"""transformers' Trainer with the parts that make it SimCLR: two views, NT-Xent, LARS, averaged weights.

Unusual: a checkpoint is written beside its place and renamed there whole, so a kill at any moment leaves only complete
ones to resume from; accumulating gradients gives the mean over small batches, not more negatives.
"""

import copy
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import sort_checkpoints

from simclr_hub._files import new_directory
from simclr_hub.errors import RecipeError

from .augmentations import Views
from .data import collate
from .losses import nt_xent_loss
from .optimization import LARS, parameter_groups


@dataclass
class SimCLRTrainingArguments(TrainingArguments):
    """transformers' arguments, and SimCLR's own.

    Args:
        temperature: of NT-Xent.
        momentum: of LARS.
        ema_decay: share of the averaged weights kept at a step; 0 keeps no average.

    Raises:
        RecipeError: a value out of range, or more than one device.
    """

    temperature: float = field(default=0.1)
    momentum: float = field(default=0.9)
    ema_decay: float = field(default=0.0)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("temperature", self.temperature > 0),
            ("momentum", 0 <= self.momentum < 1),
            ("ema_decay", 0 <= self.ema_decay < 1),
        ):
            if not allowed:
                limits = "positive" if name == "temperature" else "within [0, 1)"
                raise RecipeError(f"{name}={getattr(self, name)} must be {limits}")
        super().__post_init__()
        self.remove_unused_columns = False
        self.dataloader_drop_last = True
        self.dataloader_pin_memory = self.device.type == "cuda"
        if self.n_gpu > 1 or self.world_size > 1:
            raise RecipeError(
                f"{max(self.n_gpu, self.world_size)} devices: this version pretrains in one process on one device; "
                "set CUDA_VISIBLE_DEVICES to one GPU"
            )


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


class SimCLRTrainer(Trainer):
    """Pretrains a `SimCLRModel` on batches of uint8 images; `views` draws the two views of each batch."""

    args: SimCLRTrainingArguments
    model: nn.Module
    loss_is_scaled_for_ga = False  # compute_loss gives a mean; the Trainer divides it by the accumulation steps

    def __init__(self, model: PreTrainedModel, args: SimCLRTrainingArguments, views: Views, **kwargs: Any):
        super().__init__(model=model, args=args, data_collator=collate, **kwargs)
        self.views = views
        self._partial: str | None = None  # where a checkpoint is being written
        self.average = WeightAverage(model, args.ema_decay) if args.ema_decay > 0 else None
        if self.average is not None:
            self.add_callback(self.average)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """LARS over SimCLR's parameter groups."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.args.weight_decay)
            self.optimizer = LARS(groups, lr=self.args.learning_rate, momentum=self.args.momentum)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """NT-Xent between two views of each image, through one pass, so that BatchNorm sees both."""
        images = inputs["images"]  # (N, 3, H, W) uint8
        pixels = torch.cat([self.views(images), self.views(images)])  # (2N, 3, size, size)
        outputs = model(pixels.contiguous(memory_format=torch.channels_last), output_projections=True)
        z = outputs.projections[-1] if outputs.projections else outputs.pooler_output  # (2N, d)
        z_a, z_b = z.chunk(2)
        loss = nt_xent_loss(z_a, z_b, self.args.temperature)
        return (loss, outputs) if return_outputs else loss

    def _get_output_dir(self, trial: Any) -> str:
        return self._partial or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside its place and rename it there whole, then drop the older ones."""
        output_dir = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        if (output_dir / name).exists():  # saved at this step already (the last step is also an epoch's end)
            return
        with new_directory(output_dir / name) as partial:
            try:
                self._partial = str(partial)
                super()._save_checkpoint(model, trial)
            finally:
                self._partial = None
            for path in (partial / name).iterdir():
                os.replace(path, partial / path.name)
            (partial / name).rmdir()
            if self.average is not None:
                self.average.model.save_pretrained(partial / "ema")
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
