"""LARS as SimCLR trains with it (official `lars_optimizer.py`), and which parameters it leaves alone."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


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
                if group["adapt"]:
                    w_norm, g_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(g)
                    trust = group["trust_coefficient"] * w_norm / g_norm
                    g = g * torch.where((w_norm > 0) & (g_norm > 0), trust, torch.ones_like(trust))
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                velocity = state["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(g, alpha=group["lr"])
                p.sub_(velocity)
        return loss


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two LARS groups: weights of convolutions and dense layers; and all else, without decay and trust ratio.

    The official code decides by name (batch_normalization, bias, head_supervised); this decides by kind: what has
    fewer than two dimensions is a bias or BatchNorm's, and `classifier` is head_supervised.
    """
    adapted: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (plain if p.ndim < 2 or name.startswith("classifier.") else adapted).append(p)
    return [
        {"params": adapted, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0, "adapt": False},
    ]
