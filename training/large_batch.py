"""More negatives than memory holds: a gradient cache, and SimCLR v2's momentum encoder with a queue.

Gradient cache (GradCache, arXiv 2101.06983): NT-Xent needs all z of a batch at once, but not the activations behind
them. So embed the batch piece by piece without a graph; take the loss and its gradient on all z; embed each piece
again, now with a graph, and send its part of that gradient through. It costs one more forward pass. In evaluation mode
(frozen statistics) or without BatchNorm the gradient is that of the whole batch. In training mode each piece is
normalised by its own statistics (of all processes, if BatchNorm is synchronised): the gradient is exactly that of the
batch embedded in these pieces, which is not that of one pass. The moving statistics move once a piece, in the first
pass only.

Memory (arXiv 2006.10029, after MoCo, arXiv 1911.05722): every contrasting example, the positive included, comes from
the momentum encoder: of the current batch, and of past ones through the queue. The official code does not contain it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import gather_views
from .losses import multi_view_loss_to_keys


def cached_backward(
    model: nn.Module,
    pieces: Sequence[Tensor],
    embed: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add the gradient of `loss_of(embed(batch))` to the parameters' `.grad`, with one piece's activations at a time.

    Args:
        model: what `embed` runs; its BatchNorm's moving statistics are kept still in the second pass.
        pieces: the batch's inputs, with random views already drawn; z are joined in this order.
        embed: a piece's inputs to its z (n, d); called twice for each, with the same random state.
        loss_of: all z (N, d) to a scalar; in a distributed run it gathers, and each process gives its own rows' mean.
        backward: as `accelerator.backward`, for scaled losses. It gets a scalar for each piece, whose sum has the
            gradient of the loss.
        no_sync: as DDP's `no_sync`, entered for all pieces but the last, whose backward pass then averages the sum
            of all over the processes.

    Returns:
        The loss, without graph.

    Raises:
        ValueError: no pieces.
    """
    if not pieces:
        raise ValueError("pieces is empty: there is nothing to embed")
    states = []
    with torch.no_grad():
        parts = []
        for piece in pieces:
            states.append(_random_state(piece))
            parts.append(embed(piece))
    z = torch.cat(parts).requires_grad_()  # (N, d)
    loss = loss_of(z)
    (gradient,) = torch.autograd.grad(loss, z)
    with _still_statistics(model):
        for i, (piece, state, part) in enumerate(
            zip(pieces, states, gradient.split([len(p) for p in parts]), strict=True)
        ):
            with nullcontext() if i == len(pieces) - 1 else no_sync(), _restored(piece, state):
                backward((embed(piece) * part).sum())  # its gradient with respect to z is `part`
    return loss.detach()


_State = tuple[Tensor, Tensor | None]


def _random_state(x: Tensor) -> _State:
    """Return the states of the generators that a forward pass of x may draw from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None


@contextmanager
def _restored(x: Tensor, state: _State) -> Iterator[None]:
    """Draw again what was drawn after `state`; afterwards go on as if nothing had been drawn."""
    cpu, cuda = state
    with torch.random.fork_rng([] if cuda is None else [x.device]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, x.device)
        yield


@contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch, but leave its moving statistics."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


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
        """Return the z in the queue, (M, d) with M <= size; a view of it, in no particular order."""
        return self.queue[: self.enqueued]

    @torch.no_grad()
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Embed views (B, 3, H, W) with the momentum encoder: z (B, d), without graph."""
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
        """Return what `state_dict` holds: a tensor, so that safetensors can store it."""
        return torch.tensor(self.enqueued)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        self.enqueued = int(state)
