"""How good features are: nearest neighbours, retrieval, few labels, and a linear classifier at its optimum.

Sources: arXiv 2002.05709, appendix B.8 (the linear classifier of transfer learning); Wu et al., arXiv 1805.01978 (the
weighted vote of neighbours).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
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
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    sizes: Sequence[int] = (),
    neighbours: int = NEIGHBOURS,
    temperature: float | None = None,
) -> Tensor:
    """Predict each query's class by a vote of the nearest by cosine, (S, Q); nearer neighbours break ties.

    Args:
        queries: (Q, D).
        bank: (M, D), what votes.
        bank_labels: (M,), its classes.
        sizes: S of them, one row for each: only the first so many of the bank vote; all of it if empty.
        neighbours: that vote.
        temperature: a vote weighs exp(cosine / temperature), usually of 0.07; each weighs the same if not given.
    """
    sizes = sizes or [len(bank)]
    classes = int(bank_labels.max()) + 1
    chunks = []
    for chunk in similarities(queries, bank):
        votes = [_votes(chunk[:, :size], bank_labels, classes, neighbours, temperature) for size in sizes]
        chunks.append(torch.stack(votes).argmax(2))
    return torch.cat(chunks, 1)


def knn_scores(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float | None = None,
) -> Tensor:
    """Return each class's share of the vote that `knn_predictions` takes, (Q, classes)."""
    chunks = similarities(queries, bank)
    votes = torch.cat([_votes(chunk, bank_labels, classes, neighbours, temperature) for chunk in chunks])
    return votes / votes.sum(1, keepdim=True)


def _votes(cosines: Tensor, labels: Tensor, classes: int, neighbours: int, temperature: float | None) -> Tensor:
    """Count the votes (Q, classes) of the nearest of a bank by their cosines (Q, M)."""
    k = min(neighbours, cosines.shape[1])
    found = cosines.topk(k)  # nearest first
    # Earlier neighbours weigh more by less than a vote together: they decide ties and nothing else.
    weights = (1 + torch.linspace(1e-3, 0, neighbours)[:k]).expand(len(cosines), k)
    if temperature is not None:  # of the nearest, so that none overflows
        weights = ((found.values - found.values[:, :1]) / temperature).exp()
    return torch.zeros(len(cosines), classes).scatter_add_(1, labels[found.indices], weights)


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
    return torch.cat([right[:, :k].float().mean(1) for right in _ranked(vectors, labels, k)])


def retrieval(vectors: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return the means of `retrieval_of_each`, in percent."""
    of_each = retrieval_of_each(vectors, labels, ks)
    return {name: 100 * float(values.mean()) for name, values in of_each.items()}


def retrieval_of_each(vectors: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Tensor]:
    """Look each image up among all others by cosine: precision@k, recall@k, average precision (mAP), (Q,) in [0, 1].

    Recall@k is whether one of their class is among the k nearest, as retrieval benchmarks have it. Images that are
    alone in their class are no queries.

    Args:
        vectors: (N, D).
        labels: (N,), their classes.
        ks: each below N.

    Raises:
        ValueError: every class has one image.
    """
    others = torch.bincount(labels)[labels] - 1
    asked = others > 0
    if not bool(asked.any()):
        raise ValueError("every class has one image: there is nothing to retrieve")
    at: dict[str, list[Tensor]] = {}
    start = 0
    for right in _ranked(vectors, labels, len(labels) - 1):
        rows = slice(start, start := start + len(right))
        right = right[asked[rows]].double()
        hits = right.cumsum(1)
        for k in ks:
            at.setdefault(f"precision@{k}", []).append(hits[:, k - 1] / k)
            at.setdefault(f"recall@{k}", []).append((hits[:, k - 1] > 0).double())
        ranks = torch.arange(1, right.shape[1] + 1)
        at.setdefault("mAP", []).append((right * hits / ranks).sum(1) / others[rows][asked[rows]])
    return {name: torch.cat(values) for name, values in at.items()}


def _ranked(vectors: Tensor, labels: Tensor, k: int) -> Iterator[Tensor]:
    """Yield whether each of the k nearest others of a chunk of images, nearest first, is of their class (rows, k)."""
    start = 0
    for chunk in similarities(vectors, vectors):
        own = torch.arange(len(chunk))
        chunk[own, own + start] = -2  # below every cosine
        nearest = labels[chunk.topk(k).indices]
        yield nearest == labels[start : start + len(chunk), None]
        start += len(chunk)


def few_shot(
    queries: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    shots: Sequence[int] = (1, 5, 20),
    draws: int = 10,
    seed: int = 0,
) -> dict[int, tuple[float, float]]:
    """Measure kNN with few labels: n labelled images of each class are drawn, and as many neighbours vote.

    Args:
        queries: (Q, D).
        labels: (Q,), their classes.
        bank: (M, D), from which labelled images are drawn.
        bank_labels: (M,), its classes.
        shots: n, each; a class with fewer images gives all it has.
        draws: how often.
        seed: of the draws.

    Returns:
        n -> mean and standard deviation over the draws of the accuracy in percent.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, list[float]] = {n: [] for n in shots}
    for _ in range(draws):
        order = torch.randperm(len(bank), generator=generator)
        place = _place_in_class(bank_labels[order])
        for n in shots:
            chosen = order[place < n]
            predicted = knn_predictions(queries, bank[chosen], bank_labels[chosen], neighbours=n)[0]
            found[n].append(100 * float((predicted == labels).float().mean()))
    return {n: (float(np.mean(values)), float(np.std(values))) for n, values in found.items()}


def _place_in_class(labels: Tensor) -> Tensor:
    """Return how many of its class stand before each image, (N,)."""
    order = labels.argsort(stable=True)
    first = labels[order].eq(labels[order].roll(1)).logical_not()
    first[0] = True
    starts = first.nonzero()[:, 0]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(labels)) - starts.repeat_interleave(
        starts.diff(append=torch.tensor([len(labels)]))
    )
    return place


#: The l2 values of the v1 paper's appendix B.8: 45, log-spaced.
L2_GRID = tuple(float(value) for value in np.logspace(-6, 5, 45))
_PATH = 4  # most iterations at one l2 of the path; the chosen one is solved to its end


@dataclass(frozen=True)
class Linear:
    """A linear classifier on features: scores are x @ weight + bias.

    Attributes:
        weight: (D, C) float32.
        bias: (C,) float32.
        l2: with which it was fitted.
        loss: what was minimised, at the optimum: the mean cross entropy + l2 / 2 x the squared weights.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    loss: float

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores (N, C) of features (N, D)."""
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class _Turned:
    """Features (N, D) less their mean (D,), turned to the directions in which they vary (D, D), by variance (D,)."""

    rows: Tensor
    mean: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "_Turned":
        x = features.float()
        mean = x.mean(0)
        x = x - mean
        variances, directions = torch.linalg.eigh((x.T @ x / len(x)).double())
        return cls(x @ directions.float(), mean, directions.float(), variances.clamp_min(0))


def fit_linear(
    features: Tensor,
    labels: Tensor,
    l2: float,
    classes: int | None = None,
    start: Linear | None = None,
    iterations: int = 5000,
) -> Linear:
    """Minimise the mean cross entropy + l2 / 2 x the squared weights (not the bias) by L-BFGS.

    L-BFGS starts from the curvature at equal predictions, which the features' covariance gives: features of any scale
    and correlation then take tens of iterations instead of thousands, and the optimum is the same.

    Args:
        features: (N, D).
        labels: (N,), classes; or (N, C) of 0 and 1 where an image may have several, each class then being a decision
            of its own.
        l2: 0 or more.
        classes: C; of labels (N,) the largest + 1 if not given.
        start: the solution at a near l2, from which to go on.
        iterations: at most.
    """
    return _fit_turned(_Turned.of(features), labels, l2, classes, start, iterations)


def _fit_turned(
    x: _Turned, labels: Tensor, l2: float, classes: int | None, start: Linear | None, iterations: int
) -> Linear:
    several, n = labels.ndim == 2, len(labels)
    count = labels.shape[1] if several else classes or int(labels.max()) + 1
    curvature = 0.25 if several else 1 / count
    # In units of these, of weights along the directions and of the bias, the curvature is about 1.
    unit = (curvature * x.variances + l2).clamp_min(1e-12).rsqrt().float()[:, None]
    bias_unit = curvature**-0.5
    v = torch.zeros(len(unit), count)
    bias = torch.zeros(count)
    if start is not None:
        v = x.directions.T @ start.weight / unit
        bias = (start.bias + x.mean @ start.weight) / bias_unit
    targets = labels.float() if several else labels

    def loss_and_gradient(v: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        weight = unit * v
        scores = torch.addmm(bias_unit * bias, x.rows, weight)
        if several:
            loss = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum") / n
            error = (scores.clamp(-50).sigmoid() - targets) / n
        else:
            log_p = scores.log_softmax(1)
            loss = F.nll_loss(log_p, targets)
            error = log_p.clamp_(-50).exp_()  # below it nothing counts, and denormals take ten times as long
            error[torch.arange(n), targets] -= 1
            error /= n
        value = float(loss) + l2 / 2 * float(weight.square().double().sum())
        return value, unit * (x.rows.T @ error + l2 * weight), bias_unit * error.sum(0)

    v, bias, loss = _lbfgs(loss_and_gradient, v, bias, iterations)
    weight = x.directions @ (unit * v)
    return Linear(weight, bias_unit * bias - x.mean @ weight, l2, loss)


_Objective = Callable[[Tensor, Tensor], tuple[float, Tensor, Tensor]]


def _lbfgs(objective: _Objective, v: Tensor, bias: Tensor, iterations: int) -> tuple[Tensor, Tensor, float]:
    """Minimise by torch's L-BFGS, with gradients that the objective gives itself."""
    v, bias = v.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-6,
        tolerance_change=2e-7,  # of the loss, too, which float32 tells hardly finer
        history_size=40,
        line_search_fn="strong_wolfe",
    )
    value = math.inf

    @torch.no_grad()
    def closure() -> float:
        nonlocal value
        value, v.grad, bias.grad = objective(v, bias)
        return value

    optimizer.step(closure)
    with torch.no_grad():
        value = objective(v, bias)[0]
    return v.detach(), bias.detach(), value


def choose_l2(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    measure: Callable[[Tensor, Tensor], float],
    grid: Sequence[float] = L2_GRID,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[Linear, dict[float, float]]:
    """Choose l2 on validation features, from large to small and each from the last solution; refit on all.

    Args:
        train: features (N, D) and labels.
        validation: features and labels.
        measure: scores (M, C) and labels to what is to be large.
        grid: values of l2.
        on_step: called after each value.

    Returns:
        The classifier of the best l2 (of equals the largest), fitted on train and validation; and l2 -> measure.
    """
    features, labels = train
    classes = None if labels.ndim == 2 else int(max(labels.max(), validation[1].max())) + 1
    turned = _Turned.of(features)
    measured: dict[float, float] = {}
    fitted: Linear | None = None
    starts: dict[float, Linear] = {}
    for l2 in sorted(grid, reverse=True):
        fitted = starts[l2] = _fit_turned(turned, labels, l2, classes, fitted, _PATH)
        measured[l2] = measure(fitted.scores(validation[0]), validation[1])
        on_step()
    best = max(measured, key=lambda l2: (measured[l2], l2))
    both = (torch.cat([features, validation[0]]), torch.cat([labels, validation[1]]))
    return fit_linear(*both, best, classes, starts[best]), measured


def top1(scores: Tensor, labels: Tensor) -> float:
    """Return the accuracy in percent of scores (N, C) for labels (N,)."""
    return 100 * float((scores.argmax(1) == labels).float().mean())


def mean_per_class(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes that occur of the accuracy in percent."""
    right = (scores.argmax(1) == labels).double()
    counts = torch.bincount(labels)
    return 100 * float((torch.bincount(labels, right)[counts > 0] / counts[counts > 0]).mean())


def map11(scores: Tensor, labels: Tensor) -> float:
    """Return PASCAL VOC 2007's mean over classes of the 11-point interpolated average precision, in percent.

    Args:
        scores: (N, C).
        labels: (N, C), 1 where an image shows the class.
    """
    order = scores.argsort(stable=True, dim=0, descending=True)
    right = labels.gather(0, order).double()
    hits = right.cumsum(0)
    precision = hits / torch.arange(1, len(right) + 1)[:, None]
    points = [torch.where(10 * hits >= t * hits[-1], precision, 0.0).amax(0) for t in range(11)]  # recall >= t / 10
    return 100 * float(torch.stack(points).mean(0)[hits[-1] > 0].mean())


def interval(percent: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of an accuracy in percent, measured on n images."""
    z, p = 1.959964, percent / 100
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max((middle - half) / (1 + z * z / n), 0), 100 * min((middle + half) / (1 + z * z / n), 1)


def mean_interval(values: Tensor) -> tuple[float, float]:
    """Return the normal 95 % confidence interval of the mean of values (n,)."""
    half = 1.959964 * float(values.double().std(correction=0)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def bootstrap(
    metric: Callable[[Tensor, Tensor], float], scores: Tensor, labels: Tensor, seed: int = 0, draws: int = 200
) -> tuple[float, float]:
    """Return the 95 % interval of a metric of scores and labels over images drawn with replacement, by percentiles."""
    generator, n = torch.Generator().manual_seed(seed), len(labels)
    samples = (torch.randint(n, (n,), generator=generator) for _ in range(draws))
    low, high = np.percentile([metric(scores[rows], labels[rows]) for rows in samples], [2.5, 97.5])
    return float(low), float(high)


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
