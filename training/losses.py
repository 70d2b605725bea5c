"""NT-Xent, SimCLR's contrastive loss (arXiv 2002.05709, equation 1; official `objective.py`).

Unusual: the floor on a vector's norm is 1e-6 as in the official code, not `F.normalize`'s 1e-12; the value is the
paper's mean over 2N rows, half of what the official code logs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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
        negatives: (M, d), further negatives for every row, such as a queue's.
        chunk_size: rows at a time, recomputed in the backward pass, so that memory grows with
            chunk_size x 2N instead of (2N)^2; value and gradient stay the same. None: all at once.

    Returns:
        Scalar float32, the mean over the 2N rows, whatever the input's precision.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 images, or a temperature or chunk size that is not positive.

    Example:
        >>> nt_xent_loss(torch.eye(4), torch.eye(4), temperature=0.5)
        tensor(0.5944)
    """
    if z_a.ndim != 2 or z_a.shape != z_b.shape or len(z_a) < 2:
        raise ValueError(f"z_a and z_b must be (N, d) alike with N >= 2, got {tuple(z_a.shape)}, {tuple(z_b.shape)}")
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != z_a.shape[1]):
        raise ValueError(f"negatives must be (M, {z_a.shape[1]}), got {tuple(negatives.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    with torch.autocast(z_a.device.type, enabled=False):
        z = _normalize(torch.cat([z_a, z_b]).float())  # (2N, d)
        keys = z if negatives is None else torch.cat([z, _normalize(negatives.float())])  # (2N + M, d)
        rows = torch.arange(len(z), device=z.device)
        if chunk_size is None:
            return _rows_loss(z, keys, rows, temperature) / len(z)
        total = z.new_zeros(())
        for chunk in rows.split(chunk_size):
            total = total + checkpoint(_rows_loss, z, keys, chunk, temperature, use_reentrant=False)
        return total / len(z)


def _normalize(z: Tensor) -> Tensor:
    return z * z.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()


def _rows_loss(z: Tensor, keys: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Sum of the cross entropies of `rows`, each against every key but itself."""
    logits = z[rows] @ keys.T / temperature  # (R, 2N + M)
    logits[torch.arange(len(rows), device=z.device), rows] = float("-inf")
    return F.cross_entropy(logits, (rows + len(z) // 2) % len(z), reduction="sum")
