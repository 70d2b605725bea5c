"""NT-Xent, SimCLR's contrastive loss (arXiv 2002.05709, equation 1; official `objective.py`); DCL; several views.

The similarities are never held at once: they are computed in square tiles, and again in the backward pass, so that
memory grows with N and not with N^2; value and gradient are the exact ones. The value is the paper's mean over 2N
rows, half of what the official code logs.
"""

import itertools
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
    """Compute NT-Xent, the normalised temperature-scaled cross entropy: a row's positive is its other view.

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
    return multi_view_loss(_pair(z_a, z_b, "z"), temperature, negatives=negatives, chunk_size=chunk_size)


def dcl_loss(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.1,
    *,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute the decoupled contrastive loss (arXiv 2110.06848): no positive in the denominator of `nt_xent_loss`.

    Arguments, result and errors are those of `nt_xent_loss`. The value may be negative.

    Example:
        >>> dcl_loss(torch.eye(4), torch.eye(4), temperature=0.5)
        tensor(-0.2082)
    """
    return multi_view_loss(
        _pair(z_a, z_b, "z"), temperature, decoupled=True, negatives=negatives, chunk_size=chunk_size
    )


def multi_view_loss(
    z: Tensor,
    temperature: float = 0.1,
    *,
    decoupled: bool = False,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Contrast several views of each image: every pair of them is positive; two views give `nt_xent_loss`.

    Row i with its positives P(i), the other views of its image, adds the mean over p in P(i) of
    -log(exp(z_i . z_p / temperature) / sum over a of exp(z_i . z_a / temperature)), where a are all rows but i
    (L_out of arXiv 2004.11362, equation 2), or `decoupled` all rows of other images (arXiv 2110.06848).

    Args:
        z: (k, N, d), projections of k >= 2 views of N images, any norm.
        temperature: divides the cosine similarities; > 0.
        decoupled: leave an image's other views out of the denominator.
        negatives: (M, d), further negatives for every row.
        chunk_size: as in `nt_xent_loss`.

    Returns:
        Scalar, the mean over the kN rows; of `nt_xent_loss`'s precision.

    Raises:
        ValueError: as `nt_xent_loss`.
    """
    tile = _check(z, 2, temperature, negatives, chunk_size)
    k, n, _ = z.shape
    with torch.autocast(z.device.type, enabled=False):
        z = _unit(z)
        rows = z.flatten(0, 1)  # (kN, d)
        left_out = _left_out(n, k, decoupled)
        # Half of the tiles suffice as long as exp(-2 / temperature) is a normal float32.
        if temperature >= 0.025:
            lse = _SelfLogSumExp.apply(rows, temperature, left_out, tile)  # (kN,)
        else:
            lse = _LogSumExp.apply(rows, rows, temperature, left_out, tile)
        if negatives is not None:
            lse = torch.logaddexp(lse, _LogSumExp.apply(rows, _unit(negatives), temperature, (), tile))
        pairs = [(z[u] * z[v]).sum(1).mean() for u, v in itertools.combinations(range(k), 2)]
        return lse.mean() - torch.stack(pairs).mean() / temperature


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
    """Compute `multi_view_loss_to_keys` of two views: z_a and z_b (N, d), keys_a and keys_b (M, d)."""
    return multi_view_loss_to_keys(
        _pair(z_a, z_b, "z"),
        _pair(keys_a, keys_b, "keys"),
        temperature,
        offset=offset,
        negatives=negatives,
        chunk_size=chunk_size,
    )


def multi_view_loss_to_keys(
    z: Tensor,
    keys: Tensor,
    temperature: float = 0.1,
    *,
    decoupled: bool = False,
    offset: int = 0,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute `multi_view_loss` against other tensors as keys: all processes' batch, or a momentum encoder's output.

    Row z[v, i] has its positives at `keys[u, offset + i]`, u != v; `keys[v, offset + i]`, the same view of the same
    image, is left out; every other key is a negative. With the rows themselves as keys this is `multi_view_loss`.

    Args:
        z: (k, N, d), projections of k >= 2 views of N images, any norm.
        keys: (k, M, d), M >= N, keys of the same views; may require a gradient.
        temperature: divides the cosine similarities; > 0.
        decoupled: leave an image's other views out of the denominator.
        offset: where the keys of this batch's images begin.
        negatives: (K, d), further negatives for every row, such as a queue's.
        chunk_size: as in `nt_xent_loss`.

    Returns:
        Scalar, the mean over the kN rows; of `nt_xent_loss`'s precision.

    Raises:
        ValueError: shapes or an offset that do not fit, fewer than 2 images among the keys, or a temperature or
            chunk size that is not positive.
    """
    tile = _check(z, 1, temperature, negatives, chunk_size)
    k, n, d = z.shape
    if keys.ndim != 3 or (len(keys), keys.shape[2]) != (k, d) or keys.shape[1] < 2:
        raise ValueError(f"keys must be ({k}, M, {d}) with M >= 2, got {tuple(keys.shape)}")
    m = keys.shape[1]
    if not 0 <= offset <= m - n:
        raise ValueError(f"offset={offset} must be within [0, {m - n}]: {n} rows, {m} keys")
    with torch.autocast(z.device.type, enabled=False):
        z, keys = _unit(z), _unit(keys)
        flat = keys.flatten(0, 1) if negatives is None else torch.cat([keys.flatten(0, 1), _unit(negatives)])
        own = keys[:, offset : offset + n]  # (k, N, d)
        lse = []
        for v in range(k):
            left_out = tuple(u * m + offset for u in (range(k) if decoupled else [v]))
            lse.append(_LogSumExp.apply(z[v], flat, temperature, left_out, tile))
        pairs = [(z[v] * own[u]).sum(1).mean() for v, u in itertools.permutations(range(k), 2)]
        return torch.cat(lse).mean() - torch.stack(pairs).mean() / temperature


def _pair(a: Tensor, b: Tensor, name: str) -> Tensor:
    """Stack two views' vectors to (2, N, d)."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"{name}_a and {name}_b must be (N, d) alike, got {tuple(a.shape)}, {tuple(b.shape)}")
    return torch.stack([a, b])


def _check(z: Tensor, least: int, temperature: float, negatives: Tensor | None, chunk_size: int | None) -> int:
    """Refuse what does not fit; return the side of a tile."""
    if z.ndim != 3 or len(z) < 2 or z.shape[1] < least:
        raise ValueError(f"z must be (views, N, d), at least 2 views and N >= {least}, got {tuple(z.shape)}")
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != z.shape[2]):
        raise ValueError(f"negatives must be (M, {z.shape[2]}), got {tuple(negatives.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    if chunk_size is not None:
        return chunk_size
    return 4096 if z.device.type != "cpu" else 512 if torch.get_num_threads() == 1 else 2048


def _left_out(n: int, views: int, decoupled: bool) -> tuple[int, ...]:
    """Return the diagonals of the (kN, kN) similarities that no denominator has: a row itself, or its whole image."""
    return tuple(n * shift for shift in range(1 - views, views)) if decoupled else (0,)


def _unit(z: Tensor) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    # A floor of 1e-6 on the norm, as in the official code; `F.normalize` has 1e-12.
    return z * z.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class _LogSumExp(torch.autograd.Function):
    """Log of the sum over keys of exp(row . key / temperature), for rows (R, d) and keys (K, d) of norm <= 1: (R,).

    `left_out` leaves out key diagonal + i for row i, for each of its diagonals.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, keys: Tensor, temperature: float, left_out: tuple[int, ...], tile: int
    ) -> Tensor:
        # No cosine is below -1: a first maximum that is finite also where a tile holds nothing but left-out keys.
        peak = rows.new_full((len(rows),), -1 / temperature)
        total, zero = torch.zeros_like(peak), peak.new_zeros(())
        for r in _blocks(len(rows), tile):
            for k in _blocks(len(keys), tile):
                logits = _logits(rows[r], keys[k], temperature, _shifted(left_out, r, k), zero)  # (tile, tile)
                new = torch.maximum(peak[r], logits.amax(1))
                total[r] = total[r] * (peak[r] - new).exp() + logits.sub_(new[:, None]).exp_().sum(1)
                peak[r] = new
        lse = peak + total.log()
        ctx.save_for_backward(rows, keys, lse)
        ctx.settings = temperature, left_out, tile
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys, lse = ctx.saved_tensors
        temperature, left_out, tile = ctx.settings
        scale = (grad / temperature)[:, None]
        scaled = rows * scale
        d_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        d_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        with torch.autocast(rows.device.type, enabled=False):  # backward may be called under autocast
            for r in _blocks(len(rows), tile):
                for k in _blocks(len(keys), tile):
                    p = _logits(
                        rows[r], keys[k], temperature, _shifted(left_out, r, k), -lse[r, None]
                    ).exp_()  # softmax
                    if d_rows is not None:
                        d_rows[r].addmm_(p, keys[k])
                    if d_keys is not None:
                        d_keys[k].addmm_(p.T, scaled[r])
        return None if d_rows is None else d_rows.mul_(scale), d_keys, None, None, None


class _SelfLogSumExp(torch.autograd.Function):
    """`_LogSumExp` of z (R, d) with itself, in half of the products; `left_out` is symmetric.

    With one shift for all, 1 / temperature, exp(z_i . z_j / temperature - shift) is symmetric: a tile above the
    diagonal gives its columns' sums too, and in the backward pass serves both gradients.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, left_out: tuple[int, ...], tile: int) -> Tensor:
        total = z.new_zeros(len(z))
        for r, k in _upper_blocks(len(z), tile):
            e = _logits(z[r], z[k], temperature, _shifted(left_out, r, k), z.new_tensor(-1 / temperature)).exp_()
            total[r] += e.sum(1)
            if r != k:
                total[k] += e.sum(0)
        ctx.save_for_backward(z, total)
        ctx.settings = temperature, left_out, tile
        return total.log() + 1 / temperature

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, total = ctx.saved_tensors
        temperature, left_out, tile = ctx.settings
        scale = grad / total / temperature
        d_z = torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):  # backward may be called under autocast
            for r, k in _upper_blocks(len(z), tile):
                e = _logits(z[r], z[k], temperature, _shifted(left_out, r, k), z.new_tensor(-1 / temperature)).exp_()
                e *= scale[r, None] + scale[k]  # as row i of the loss, and as a key in row j's
                d_z[r].addmm_(e, z[k])
                if r != k:
                    d_z[k].addmm_(e.T, z[r])
        return d_z, None, None, None


def _upper_blocks(n: int, size: int) -> Iterator[tuple[slice, slice]]:
    blocks = list(_blocks(n, size))
    return ((r, k) for i, r in enumerate(blocks) for k in blocks[i:])


def _shifted(left_out: tuple[int, ...], rows: slice, keys: slice) -> list[int]:
    """Return the diagonals of a tile's own that hold the left-out keys."""
    return [diagonal + rows.start - keys.start for diagonal in left_out]


def _logits(rows: Tensor, keys: Tensor, temperature: float, left_out: list[int], shift: Tensor) -> Tensor:
    """Return a tile (R, K) of rows . keys / temperature + shift, -inf on the diagonals `left_out`."""
    logits = torch.addmm(shift, rows, keys.T, alpha=1 / temperature)
    for diagonal in left_out:
        if -len(rows) < diagonal < len(keys):
            logits.diagonal(diagonal).fill_(float("-inf"))
    return logits
