"""How good features are: the accuracy and the precision of the nearest neighbours, without training anything."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_hub.modeling_simclr import SimCLRModel
from simclr_hub.pixels import transform

#: Neighbours that vote; 20 to 200 are usual, and few suit small banks.
NEIGHBOURS = 20


class Images(Protocol):
    """Labelled images, such as an `ImageArray`."""

    labels: Any  # (N,)

    def __len__(self) -> int: ...

    def image(self, i: int) -> Tensor:
        """Return image i, uint8 (3, H, W)."""


def similarities(queries: Tensor, bank: Tensor, rows: int = 500) -> Iterator[Tensor]:
    """Yield the cosines (rows, M) of chunks of the queries (Q, D) with the bank (M, D)."""
    queries, bank = F.normalize(queries), F.normalize(bank)
    for chunk in queries.split(rows):
        yield chunk @ bank.T


def knn_predictions(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, sizes: Sequence[int] = (), neighbours: int = NEIGHBOURS
) -> Tensor:
    """Predict each query's class by a majority vote of the nearest by cosine, (S, Q); nearer neighbours break ties.

    Args:
        queries: (Q, D).
        bank: (M, D), what votes.
        bank_labels: (M,), its classes.
        sizes: S of them, one row for each: only the first so many of the bank vote; all of it if empty.
        neighbours: that vote.
    """
    sizes = sizes or [len(bank)]
    classes = int(bank_labels.max()) + 1
    # Earlier neighbours weigh more by less than a vote together: they decide ties and nothing else.
    weights = 1 + torch.linspace(1e-3, 0, neighbours)
    chunks = []
    for chunk in similarities(queries, bank):
        votes = torch.zeros(len(sizes), len(chunk), classes)
        for of_size, size in zip(votes, sizes, strict=True):
            k = min(neighbours, size, len(bank))
            nearest = bank_labels[chunk[:, :size].topk(k).indices]  # (rows, k), nearest first
            of_size.scatter_add_(1, nearest, weights[:k].expand(len(chunk), k))
        chunks.append(votes.argmax(2))
    return torch.cat(chunks, 1)


def knn_accuracy(
    queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor, sizes: Sequence[int] = ()
) -> list[float]:
    """Return the top-1 accuracy in percent of `knn_predictions` by 20 neighbours, one for each of `sizes`.

    Args:
        queries: (Q, D).
        labels: (Q,), their classes.
        bank: (M, D), what votes.
        bank_labels: (M,).
        sizes: as there.
    """
    right = (knn_predictions(queries, bank, bank_labels, sizes) == labels).sum(1)
    return [100 * n / len(queries) for n in right.tolist()]


def precision_at(vectors: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return the share of its own class among each image's k nearest others by cosine, (N,) in [0, 1].

    Args:
        vectors: (N, D).
        labels: (N,), their classes.
        k: below N.
    """
    shares = []
    for start, chunk in enumerate(similarities(vectors, vectors)):
        own = torch.arange(len(chunk))
        chunk[own, own + 500 * start] = -2  # below every cosine
        nearest = labels[chunk.topk(k).indices]  # (rows, k)
        shares.append((nearest == labels[500 * start :][: len(chunk), None]).float().mean(1))
    return torch.cat(shares)


@torch.no_grad()
def features(model: SimCLRModel, data: Images, limit: int, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Compute h (n, D) float32 and labels (n,) of up to `limit` images, evenly spread over the data, in eval mode.

    The images pass through the same transform as `SimCLRImageProcessor` applies.
    """
    rows = torch.linspace(0, len(data) - 1, min(limit, len(data))).long().tolist()
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    for start in range(0, len(rows), batch_size):
        images = [data.image(i) for i in rows[start : start + batch_size]]
        alike = len({image.shape for image in images}) == 1
        batches = [torch.stack(images)] if alike else [image[None] for image in images]
        pixels = torch.cat([transform(batch, model.config.image_size) for batch in batches])
        found.append(model(pixels.to(device)).pooler_output.float().cpu())
    model.train(was_training)
    return torch.cat(found), torch.tensor([data.labels[i] for i in rows])
