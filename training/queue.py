"""SimCLR v2's memory: a momentum encoder, and a queue of its z as further negatives (arXiv 2006.10029, after MoCo).

As in MoCo (arXiv 1911.05722) every contrasting example, the positive included, comes from the momentum encoder: of the
current batch, and of past ones through the queue. The official code does not contain it.

Unusual: the queue starts empty, not with random vectors, and the loss sees only what is in it. The momentum encoder
normalises by the batch, as the encoder does: its BatchNorm's moving statistics are those of its own passes, and only
its parameters are averages of the encoder's.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import gather_views
from .losses import multi_view_loss_to_keys


class MomentumMemory(nn.Module):
    """The momentum encoder, its queue, and the loss against both; `state_dict` holds all that a resumed run needs.

    Of a step: `embed` the views, take the `loss`, and after the optimiser's step `update`. On several processes each
    holds the same memory: keys are gathered in the order of ranks, and the parameters that are averaged are the same.

    Args:
        model: a `SimCLRModel`, copied; after `synchronize_batch_norm`, before DDP.
        size: z in the queue; fewer than the data set has, or an image meets its own earlier z among the negatives.
        momentum: share of the momentum encoder's parameters kept at a step.

    Raises:
        ValueError: a size that is not positive or a momentum outside [0, 1).
    """

    queue: Tensor

    def __init__(self, model: nn.Module, size: int = 65536, momentum: float = 0.999):
        super().__init__()
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be within [0, 1)")
        self.encoder = copy.deepcopy(model).requires_grad_(False)
        self.momentum = momentum
        self.enqueued = 0  # z since the run began; the next one goes to this, modulo the size
        config: Any = model.config
        width = [config.hidden_size, *config.projection_sizes][-1]
        device = next(model.parameters()).device
        self.register_buffer("queue", torch.zeros(size, width, device=device))  # (size, d)

    @property
    def negatives(self) -> Tensor:
        """The z in the queue, (M, d) with M <= size; a view of it, in no particular order."""
        return self.queue[: self.enqueued]

    @torch.no_grad()
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Views (B, 3, H, W) to the momentum encoder's z (B, d), without graph."""
        outputs = self.encoder(pixel_values, output_projections=True)
        z: Tensor = outputs.projections[-1] if outputs.projections else outputs.pooler_output
        return z

    def loss(
        self,
        z: Tensor,
        keys: Tensor,
        temperature: float = 0.1,
        *,
        views: int = 2,
        decoupled: bool = False,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Contrast the encoder's z with all processes' keys and the queue, which in training then takes the keys.

        Args:
            z: (kN, d), the encoder's: this process's first views, then their second views, and so on.
            keys: (kN, d), `embed`'s, in the same order.
            temperature: divides the cosine similarities; > 0.
            views: k.
            decoupled: leave an image's other views out of the denominator.
            chunk_size: as in `nt_xent_loss`.

        Returns:
            Scalar float32, the mean over this process's kN rows. Gradients reach z only.

        Raises:
            ValueError: as `multi_view_loss_to_keys`.
        """
        shape = (views, -1, z.shape[1])
        gathered, offset = gather_views(keys.detach().view(shape))
        loss = multi_view_loss_to_keys(
            z.view(shape),
            gathered,
            temperature,
            decoupled=decoupled,
            offset=offset,
            negatives=self.negatives if self.enqueued else None,
            chunk_size=chunk_size,
        )
        if self.training:
            self._enqueue(gathered.flatten(0, 1))
        return loss

    def _enqueue(self, keys: Tensor) -> None:
        size = len(self.queue)
        places = torch.arange(self.enqueued, self.enqueued + len(keys), device=keys.device) % size
        self.queue[places[-size:]] = keys[-size:].to(self.queue.dtype)
        self.enqueued += len(keys)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the momentum encoder's parameters towards the encoder's, which may be wrapped in DDP."""
        for ours, theirs in zip(self.encoder.parameters(), model.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.momentum)

    def get_extra_state(self) -> Tensor:
        """For `state_dict`: a tensor, so that safetensors can hold it."""
        return torch.tensor(self.enqueued)

    def set_extra_state(self, state: Tensor) -> None:
        """For `load_state_dict`."""
        self.enqueued = int(state)
