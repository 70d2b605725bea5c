"""NT-Xent, SimCLR's contrastive loss (arXiv 2002.05709, equation 1; official `objective.py`).

Unusual:
- the similarities are never held at once: they are computed in square tiles, and again in the backward pass, so that
  memory grows with N and not with N^2; value and gradient are the exact ones;
- between the rows of one batch each tile is used for both of its halves, which saves half of the work;
- the floor on a vector's norm is 1e-6 as in the official code, not `F.normalize`'s 1e-12; the value is the
  paper's mean over 2N rows, half of what the official code logs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def nt_xent_loss(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.1,
    *,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Normalised temperature-scaled cross entropy: each row's positive is its other view, all else is a negative.

    Args:
        z_a: (N, d), projections of the first views, any norm.
        z_b: (N, d), projections of the second views, in the same order.
        temperature: divides the cosine similarities; > 0.
        negatives: (M, d), further negatives for every row.
        chunk_size: side of the tiles of similarities, the only ones in memory at a time. It changes speed and memory,
            not the result. None: 512 on one CPU thread (a tile fits its cache), 2048 on several (which wait for each
            other after every tile), 4096 on other devices.

    Returns:
        Scalar, the mean over the 2N rows: float32, whatever the precision, also under autocast; float64 of float64.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 images, or a temperature or chunk size that is not positive.

    Example:
        >>> nt_xent_loss(torch.eye(4), torch.eye(4), temperature=0.5)
        tensor(0.5944)
    """
    tile = _check(z_a, z_b, 2, temperature, negatives, chunk_size)
    with torch.autocast(z_a.device.type, enabled=False):
        z = _unit(torch.cat([z_a, z_b]))  # (2N, d)
        # Half of the tiles suffice as long as exp(-2 / temperature) is a normal float32.
        if temperature >= 0.025:
            lse = _SelfLogSumExp.apply(z, temperature, tile)  # (2N,)
        else:
            lse = _LogSumExp.apply(z, z, temperature, 0, tile)
        if negatives is not None:
            lse = torch.logaddexp(lse, _LogSumExp.apply(z, _unit(negatives), temperature, None, tile))
        a, b = z.chunk(2)
        return lse.mean() - (a * b).sum(1).mean() / temperature


def nt_xent_loss_to_keys(
    z_a: Tensor,
    z_b: Tensor,
    keys_a: Tensor,
    keys_b: Tensor,
    temperature: float = 0.1,
    *,
    offset: int = 0,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """NT-Xent against keys that are other tensors: the batch of all processes, or a momentum copy's output.

    Row i of `z_a` has its positive at `keys_b[offset + i]`; `keys_a[offset + i]`, the same view of the same image, is
    left out; every other key is a negative. With the rows themselves as keys this is `nt_xent_loss`.

    Args:
        z_a: (N, d), projections of the first views, any norm.
        z_b: (N, d), projections of the second views, in the same order.
        keys_a: (M, d), M >= N, keys of the first views; may require a gradient.
        keys_b: (M, d), keys of the second views, in the same order.
        temperature: divides the cosine similarities; > 0.
        offset: where the keys of this batch's images begin.
        negatives: (K, d), further negatives for every row, such as a queue's.
        chunk_size: as in `nt_xent_loss`.

    Returns:
        Scalar, the mean over the 2N rows; of `nt_xent_loss`'s precision.

    Raises:
        ValueError: shapes or an offset that do not fit, fewer than 2 images among the keys, or a temperature or
            chunk size that is not positive.
    """
    tile = _check(z_a, z_b, 1, temperature, negatives, chunk_size)
    n, m = len(z_a), len(keys_a)
    if keys_a.ndim != 2 or keys_a.shape != keys_b.shape or keys_a.shape[1] != z_a.shape[1] or m < 2:
        raise ValueError(
            f"keys_a and keys_b must be (M, {z_a.shape[1]}) alike with M >= 2, "
            f"got {tuple(keys_a.shape)}, {tuple(keys_b.shape)}"
        )
    if not 0 <= offset <= m - n:
        raise ValueError(f"offset={offset} must be within [0, {m - n}]: {n} rows, {m} keys")
    with torch.autocast(z_a.device.type, enabled=False):
        a, b = _unit(z_a), _unit(z_b)
        keys = _unit(torch.cat([keys_a, keys_b] if negatives is None else [keys_a, keys_b, negatives]))  # (2M + K, d)
        lse = torch.cat(
            [
                _LogSumExp.apply(a, keys, temperature, offset, tile),
                _LogSumExp.apply(b, keys, temperature, m + offset, tile),
            ]
        )
        of_a, of_b = keys[offset : offset + n], keys[m + offset : m + offset + n]
        return lse.mean() - ((a * of_b).sum(1).mean() + (b * of_a).sum(1).mean()) / (2 * temperature)


def _check(
    z_a: Tensor, z_b: Tensor, least: int, temperature: float, negatives: Tensor | None, chunk_size: int | None
) -> int:
    """Refuse what does not fit; the side of a tile."""
    if z_a.ndim != 2 or z_a.shape != z_b.shape or len(z_a) < least:
        raise ValueError(
            f"z_a and z_b must be (N, d) alike with N >= {least}, got {tuple(z_a.shape)}, {tuple(z_b.shape)}"
        )
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != z_a.shape[1]):
        raise ValueError(f"negatives must be (M, {z_a.shape[1]}), got {tuple(negatives.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    if chunk_size is not None:
        return chunk_size
    return 4096 if z_a.device.type != "cpu" else 512 if torch.get_num_threads() == 1 else 2048


def _unit(z: Tensor) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return z * z.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class _LogSumExp(torch.autograd.Function):
    """Log of the sum over keys of exp(row . key / temperature), for rows (R, d) and keys (K, d) of norm <= 1: (R,).

    `own` leaves out key own + i for row i; None leaves out none.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keys: Tensor, temperature: float, own: int | None, tile: int) -> Tensor:
        # No cosine is below -1: a first maximum that is finite also where a tile holds nothing but left-out keys.
        peak = rows.new_full((len(rows),), -1 / temperature)
        total, zero = torch.zeros_like(peak), peak.new_zeros(())
        for r in _blocks(len(rows), tile):
            for k in _blocks(len(keys), tile):
                logits = _logits(rows[r], keys[k], temperature, _own(own, r, k), zero)  # (tile, tile)
                new = torch.maximum(peak[r], logits.amax(1))
                total[r] = total[r] * (peak[r] - new).exp() + logits.sub_(new[:, None]).exp_().sum(1)
                peak[r] = new
        lse = peak + total.log()
        ctx.save_for_backward(rows, keys, lse)
        ctx.settings = temperature, own, tile
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys, lse = ctx.saved_tensors
        temperature, own, tile = ctx.settings
        scale = (grad / temperature)[:, None]
        scaled = rows * scale
        d_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        d_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        with torch.autocast(rows.device.type, enabled=False):  # backward may be called under autocast
            for r in _blocks(len(rows), tile):
                for k in _blocks(len(keys), tile):
                    p = _logits(rows[r], keys[k], temperature, _own(own, r, k), -lse[r, None]).exp_()  # softmax
                    if d_rows is not None:
                        d_rows[r].addmm_(p, keys[k])
                    if d_keys is not None:
                        d_keys[k].addmm_(p.T, scaled[r])
        return None if d_rows is None else d_rows.mul_(scale), d_keys, None, None, None


class _SelfLogSumExp(torch.autograd.Function):
    """`_LogSumExp` of z (R, d) with itself, each row's own key left out, in half of the products.

    With one shift for all, 1 / temperature, exp(z_i . z_j / temperature - shift) is symmetric: a tile above the
    diagonal gives its columns' sums too, and in the backward pass serves both gradients.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, tile: int) -> Tensor:
        total = z.new_zeros(len(z))
        for r, k in _upper_blocks(len(z), tile):
            e = _logits(z[r], z[k], temperature, _own(0, r, k), z.new_tensor(-1 / temperature)).exp_()
            total[r] += e.sum(1)
            if r != k:
                total[k] += e.sum(0)
        ctx.save_for_backward(z, total)
        ctx.settings = temperature, tile
        return total.log() + 1 / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, total = ctx.saved_tensors
        temperature, tile = ctx.settings
        scale = grad / total / temperature
        d_z = torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):  # backward may be called under autocast
            for r, k in _upper_blocks(len(z), tile):
                e = _logits(z[r], z[k], temperature, _own(0, r, k), z.new_tensor(-1 / temperature)).exp_()
                e *= scale[r, None] + scale[k]  # as row i of the loss, and as a key in row j's
                d_z[r].addmm_(e, z[k])
                if r != k:
                    d_z[k].addmm_(e.T, z[r])
        return d_z, None, None


def _upper_blocks(n: int, size: int) -> Iterator[tuple[slice, slice]]:
    blocks = list(_blocks(n, size))
    return ((r, k) for i, r in enumerate(blocks) for k in blocks[i:])


def _own(own: int | None, rows: slice, keys: slice) -> int | None:
    """Of which diagonal of a tile the left-out keys are."""
    return None if own is None else own + rows.start - keys.start


def _logits(rows: Tensor, keys: Tensor, temperature: float, own: int | None, shift: Tensor) -> Tensor:
    """A tile (R, K) of rows . keys / temperature + shift, -inf on the diagonal `own`."""
    logits = torch.addmm(shift, rows, keys.T, alpha=1 / temperature)
    if own is not None and -len(rows) < own < len(keys):
        logits.diagonal(own).fill_(float("-inf"))
    return logits
