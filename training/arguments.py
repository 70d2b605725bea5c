"""A run's settings: transformers' TrainingArguments and SimCLR's own, each refused by name if it cannot be."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from simclr_hub.errors import RecipeError

from .optimization import LR_SCALINGS, OPTIMIZERS

LOSSES = ("nt_xent", "dcl")

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

    @property
    def global_batch(self) -> int:
        """Images in a step, over all processes."""
        return int(self.per_device_train_batch_size * self.world_size)
