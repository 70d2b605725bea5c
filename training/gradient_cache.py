"""Gradients of a large batch on the memory of a small one (GradCache, arXiv 2101.06983).

NT-Xent needs all z of a batch at once, but not the activations behind them. So: embed the batch piece by piece without
a graph; take the loss and its gradient on all z; embed each piece again, now with a graph, and send its part of that
gradient through. It costs one more forward pass.

What BatchNorm does to the equality: in evaluation mode (frozen statistics) or without it the gradient is that of the
whole batch. In training mode each piece is normalised by its own statistics (of all processes, if BatchNorm is
synchronised): the gradient is exactly that of the batch embedded in these pieces, which is not that of one pass. The
negatives are the large batch's, the normalisation is the piece's. The moving statistics move once a piece, in the
first pass only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
    """Of the generators that a forward pass of x may draw from."""
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
