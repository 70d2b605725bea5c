"""SimCLR's optimisers, which parameters they decay and adapt, and learning rates (official `lars_optimizer.py`)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

OPTIMIZERS = ("lars", "sgd", "adamw")
LR_SCALINGS = ("none", "linear", "sqrt")


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with classic momentum: v = m v + lr x trust x g; w -= v (arXiv 1708.03888).

    Args:
        params: parameters or groups; a group with `"adapt": False` gets no trust ratio.
        lr: learning rate; enters the velocity, so a schedule acts on new gradients only.
        momentum: share of the velocity that is kept.
        weight_decay: added to the gradient as weight_decay x w, before the trust ratio.
        trust_coefficient: trust = trust_coefficient x |w| / |g|, and 1 where either norm is 0.

    Raises:
        ValueError: an argument that is negative or not a number.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        defaults = dict(
            lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient, adapt=True
        )
        for name, value in defaults.items():
            if not value >= 0:  # nan too
                raise ValueError(f"{name}={value} must not be negative")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad.add(p, alpha=group["weight_decay"])
                rate = group["lr"]
                if group["adapt"]:
                    w_norm, g_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(g)
                    trust = group["trust_coefficient"] * w_norm / g_norm
                    rate = torch.where((w_norm > 0) & (g_norm > 0), trust, torch.ones_like(trust)) * rate
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                velocity = state["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(g.mul_(rate))  # in the official order: equal to the last bit
                p.sub_(velocity)
        return loss


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """List LARS's groups: convolutions' and dense weights; the rest, without decay and trust ratio; a classifier's.

    The official code decides by name (batch_normalization, bias, head_supervised); this decides by kind: what has
    fewer than two dimensions is a bias or BatchNorm's, and `classifier` is head_supervised. Its kernel is decayed
    through the loss, which is decay without trust ratio; that third group is there only if the model has one.
    """
    adapted: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    classifier: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (plain if p.ndim < 2 else classifier if name.startswith("classifier.") else adapted).append(p)
    groups: list[dict[str, Any]] = [
        {"params": adapted, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0, "adapt": False},
        {"params": classifier, "weight_decay": weight_decay, "adapt": False},
    ]
    return groups if classifier else groups[:2]


def create_optimizer(
    model: nn.Module, name: str, lr: float, weight_decay: float = 0.0, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Make a recipe's optimiser over the model's parameters that require a gradient.

    Args:
        model: a SimCLR model or classifier.
        name: "lars"; "sgd": Nesterov momentum with decay on everything but BatchNorm, biases too, as the official
            momentum optimiser; "adamw": decay on weights of convolutions and dense layers only, as is usual.
        lr: peak learning rate, already scaled.
        weight_decay: for adamw decoupled from the gradient, else added to it.
        momentum: for adamw unused.

    Raises:
        ValueError: an unknown name, or a value that the optimiser refuses.
    """
    if name == "lars":
        return LARS(parameter_groups(model, weight_decay), lr=lr, momentum=momentum)
    if name == "sgd":
        norms = {id(p) for m in model.modules() if isinstance(m, _BatchNorm) for p in m.parameters()}
        groups = _decay_groups(model, weight_decay, lambda p: id(p) not in norms)
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if name == "adamw":
        return torch.optim.AdamW(_decay_groups(model, weight_decay, lambda p: p.ndim >= 2), lr=lr)
    raise ValueError(f"optimizer={name!r} is not one of {', '.join(OPTIMIZERS)}")


def _decay_groups(
    model: nn.Module, weight_decay: float, decays: Callable[[nn.Parameter], bool]
) -> list[dict[str, Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]


def scale_learning_rate(lr: float, batch: int, scaling: str) -> float:
    """Scale a peak learning rate for a global batch of `batch` images.

    Args:
        lr: the base: 0.3 (linear) or 0.075 (sqrt) for ImageNet, 1.0 (linear) for CIFAR-10.
        batch: images, not views.
        scaling: "none"; "linear": lr x batch / 256; "sqrt": lr x the square root of batch.

    Raises:
        ValueError: an unknown scaling.
    """
    if scaling not in LR_SCALINGS:
        raise ValueError(f"lr_scaling={scaling!r} is not one of {', '.join(LR_SCALINGS)}")
    return lr * {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}[scaling]


def official_steps(images: int, batch: int, epochs: float, warmup_epochs: float) -> tuple[int, int]:
    """Return the official schedule's warm-up steps and total T; a run has T - 1 steps, so it ends just above 0.

    Args:
        images: in the data set.
        batch: images in the global batch.
        epochs: of the run.
        warmup_epochs: 10 in the papers.
    """
    return round(warmup_epochs * images // batch), int(images * epochs // batch) + 1


def cosine(progress: float) -> float:
    """Return the share of the peak rate after a share `progress` of the fall: half a cosine from 1 to 0, then 0."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmup_cosine(optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Rise linearly from 0 to the peak at `warmup_steps`, then fall by half a cosine to 0 at `total_steps`.

    Steps count from 0, so the first update of a warm-up has learning rate 0, as in the official code.

    Args:
        optimizer: its groups' learning rates are the peaks.
        warmup_steps: 0 for none.
        total_steps: T of `official_steps`.

    Raises:
        ValueError: steps that are negative.
    """
    if warmup_steps < 0 or total_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} and total_steps={total_steps} must not be negative")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return cosine((step - warmup_steps) / max(total_steps - warmup_steps, 1))

    return LambdaLR(optimizer, factor)
