import math
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_hub import SimCLRConfig, SimCLRImageProcessor, SimCLRModel
from simclr_hub.training import protocols
from simclr_hub.training.data import ImageArray
from simclr_hub.training.protocols import (
    L2_GRID,
    Linear,
    choose_l2,
    features,
    few_shot,
    fit_linear,
    interval,
    knn_accuracy,
    knn_predictions,
    knn_scores,
    map11,
    mean_per_class,
    precision_at,
    retrieval,
    top1,
)


def test_accuracy_equals_a_vote_counted_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(60, 5, generator=generator), torch.randn(30, 5, generator=generator)
    bank_labels, labels = (
        torch.randint(0, 3, (60,), generator=generator),
        torch.randint(0, 3, (30,), generator=generator),
    )

    def by_hand(size: int) -> float:
        right = 0
        for query, label in zip(queries, labels, strict=True):
            cosines = [float(query @ b / query.norm() / b.norm()) for b in bank[:size]]
            nearest = sorted(range(size), key=lambda i: -cosines[i])[:20]
            votes = [sum(int(bank_labels[i]) == c for i in nearest) for c in range(3)]
            tied = [c for c in range(3) if votes[c] == max(votes)]
            first = min(tied, key=lambda c: sum(r for r, i in enumerate(nearest) if bank_labels[i] == c))
            right += int(first == label)
        return 100 * right / 30

    assert knn_accuracy(queries, labels, bank, bank_labels, (15, 40, 60)) == pytest.approx(
        [by_hand(n) for n in (15, 40, 60)]
    )
    assert knn_accuracy(queries, labels, bank, bank_labels) == pytest.approx([by_hand(60)])


def test_precision_equals_neighbours_counted_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    # More than one chunk of 500, so that each leaves out its own rows.
    vectors, labels = torch.randn(510, 4, generator=generator), torch.randint(0, 3, (510,), generator=generator)
    vectors[505] = vectors[7]  # equal to another one: only the image itself is left out
    units = torch.nn.functional.normalize(vectors)

    def by_hand(i: int, k: int) -> float:
        others = [j for j in range(510) if j != i]
        nearest = sorted(others, key=lambda j: -float(units[i] @ units[j]))[:k]
        return sum(int(labels[i] == labels[j]) for j in nearest) / k

    for k in (1, 5):
        found = precision_at(vectors, labels, k)
        assert found.shape == (510,)
        assert [float(found[i]) for i in (0, 7, 499, 500, 505, 509)] == pytest.approx(
            [by_hand(i, k) for i in (0, 7, 499, 500, 505, 509)]
        )


def test_features_are_those_of_the_processor_and_training_goes_on() -> None:
    torch.manual_seed(0)
    config = SimCLRConfig(depths=(1,), layer_type="basic", width_multiplier=0.125, stem_type="small", image_size=40)
    model = SimCLRModel(config).train()
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 48, 48), dtype=np.uint8)
    data = ImageArray(images, np.arange(7))
    h, labels = features(model, data, 4, batch_size=3)
    assert model.training and labels.tolist() == [0, 2, 4, 6]
    pixels = SimCLRImageProcessor(size=40)(images=list(images[[0, 2, 4, 6]]), return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(h, model.eval()(pixels).pooler_output)


def test_the_weighted_vote_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    bank, queries = torch.randn(40, 6, generator=generator), torch.randn(15, 6, generator=generator)
    labels = torch.randint(0, 4, (40,), generator=generator)
    scores = knn_scores(queries, bank, labels, 5, neighbours=7, temperature=0.1)
    assert scores.shape == (15, 5) and torch.all(scores[:, 4] == 0)
    for query, row in zip(queries, scores, strict=True):
        cosines = torch.tensor([float(query @ b / query.norm() / b.norm()) for b in bank]).double()
        nearest = sorted(range(40), key=lambda i: -cosines[i])[:7]
        votes = [sum(math.exp(cosines[i] / 0.1) for i in nearest if labels[i] == c) for c in range(5)]
        assert row.tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-5)
    predicted = knn_predictions(queries, bank, labels, (40,), neighbours=7, temperature=0.1)[0]
    assert torch.equal(predicted, scores.argmax(1))
    # A temperature that would overflow exp(1 / t) leaves the nearest alone.
    cold = knn_scores(queries, bank, labels, 4, neighbours=7, temperature=1e-4)
    assert torch.equal(cold.argmax(1), knn_predictions(queries, bank, labels, neighbours=1)[0])
    assert torch.isfinite(cold).all()
    # A hot one is the majority.
    torch.testing.assert_close(
        knn_scores(queries, bank, labels, 4, 7, 1e6), knn_scores(queries, bank, labels, 4, 7), atol=1e-3, rtol=0
    )


def test_retrieval_equals_rankings_counted_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, labels = torch.randn(521, 4, generator=generator), torch.randint(0, 40, (521,), generator=generator)
    labels[510] = 77  # alone in its class: no query, but among what the others find
    units = F.normalize(vectors).double()
    expected: dict[str, list[float]] = {}
    for i in range(521):
        same = int((labels == labels[i]).sum()) - 1
        if not same:
            continue
        others = sorted((j for j in range(521) if j != i), key=lambda j: -float(units[i] @ units[j]))
        right = [int(labels[j] == labels[i]) for j in others]
        for k in (1, 5):
            expected.setdefault(f"precision@{k}", []).append(sum(right[:k]) / k)
            expected.setdefault(f"recall@{k}", []).append(float(any(right[:k])))
        precisions = [sum(right[: rank + 1]) / (rank + 1) for rank in range(520) if right[rank]]
        expected.setdefault("mAP", []).append(sum(precisions) / same)
    found = retrieval(vectors, labels, (1, 5))
    assert found == pytest.approx(
        {name: 100 * statistics.mean(v) for name, v in expected.items()}, abs=1e-3
    )  # ties in float32
    with pytest.raises(ValueError, match="every class has one image"):
        retrieval(vectors[:3], torch.tensor([0, 1, 2]))


def test_few_labels_are_drawn_of_each_class_and_as_many_vote() -> None:
    # Class c lies around its own axis: every draw is right; but of the bank's one mislabelled class none is.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor([6, 6, 6, 2]))
    bank = torch.eye(4)[labels] + 0.01 * torch.randn(20, 4, generator=generator)
    queries, truth = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert few_shot(queries, truth, bank, labels, (1, 3), draws=4) == {
        1: (75.0, 0.0),
        3: pytest.approx((75.0, 0.0)),  # the class of two gives both
    }
    noisy = torch.randn(20, 4, generator=generator)
    first = few_shot(queries, truth, noisy, labels, (1,), draws=50)
    assert first == few_shot(queries, truth, noisy, labels, (1,), draws=50)
    assert first != few_shot(queries, truth, noisy, labels, (1,), draws=50, seed=1)
    mean, spread = first[1]
    assert 0 < mean < 100 and spread > 0


def test_as_many_of_each_class_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(queries: Tensor, bank: Tensor, bank_labels: Tensor, **kwargs: int) -> Tensor:
        seen.append((torch.bincount(bank_labels).tolist(), kwargs["neighbours"], bank[:, 0].tolist()))
        return torch.zeros(1, len(queries), dtype=torch.long)

    monkeypatch.setattr(protocols, "knn_predictions", spy)
    labels = torch.tensor([1, 0, 2, 1, 1, 0, 2, 0, 1, 1])
    few_shot(torch.zeros(2, 1), torch.zeros(2), torch.arange(10.0)[:, None], labels, (1, 2, 4), draws=3)
    assert [(counts, k) for counts, k, _ in seen] == [([1, 1, 1], 1), ([2, 2, 2], 2), ([3, 4, 2], 4)] * 3
    assert seen[0][2] != seen[3][2] or seen[0][2] != seen[6][2]  # draws differ
    for draw in (seen[:3], seen[3:6]):
        assert set(draw[0][2]) < set(draw[1][2]) < set(draw[2][2])


def classes_of(n: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of unlike scales, correlated, with a mean far from 0, as networks' are."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    mixed = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    return (centres[labels] + torch.randn(n, width, generator=generator)) @ mixed + 3, labels


def objective(weight: Tensor, bias: Tensor, x: Tensor, labels: Tensor, l2: float) -> Tensor:
    """The loss as it is defined, in float64."""
    scores = x.double() @ weight + bias
    if labels.ndim == 2:
        data = F.binary_cross_entropy_with_logits(scores, labels.double(), reduction="sum") / len(x)
    else:
        data = F.cross_entropy(scores, labels)
    return data + l2 / 2 * weight.square().sum()


def newton(x: Tensor, labels: Tensor, classes: int, l2: float) -> float:
    """The optimum by damped Newton steps in float64, until the gradient is gone."""
    width = x.shape[1]
    at = torch.zeros((width + 1) * classes, dtype=torch.float64)

    def loss(flat: Tensor) -> Tensor:
        both = flat.view(width + 1, classes)
        return objective(both[:-1], both[-1], x, labels, l2)

    for _ in range(100):
        gradient = torch.autograd.functional.jacobian(loss, at)
        if gradient.abs().max() < 1e-10:
            break
        hessian = torch.autograd.functional.hessian(loss, at)
        step = torch.linalg.lstsq(hessian + 1e-12 * torch.eye(len(at)), gradient).solution
        size = 1.0
        while loss(at - size * step) > loss(at) and size > 1e-9:
            size /= 2
        at = at - size * step
    assert gradient.abs().max() < 1e-7
    return float(loss(at))


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0, 1e3])
def test_the_linear_classifier_is_at_its_optimum(l2: float) -> None:
    x, labels = classes_of(300, 6, 3, seed=2)
    found = fit_linear(x, labels, l2)
    best = newton(x, labels, 3, l2)
    assert found.loss == pytest.approx(best, abs=1e-4)
    # What it says of itself is so, of the weights that it returns.
    assert float(objective(found.weight.double(), found.bias.double(), x, labels, l2)) == pytest.approx(
        found.loss, abs=1e-5
    )
    assert found.scores(x).shape == (300, 3) and found.l2 == l2


def test_several_classes_at_once_are_decisions_of_their_own() -> None:
    x, labels = classes_of(200, 5, 3, seed=3)
    shown = F.one_hot(labels, 3)
    shown[:50, 1] = 1
    found = fit_linear(x, shown, 0.01)
    for c in range(3):  # each alone
        one = fit_linear(x, shown[:, [c]], 0.01)
        torch.testing.assert_close(found.weight[:, [c]], one.weight, atol=2e-3, rtol=1e-2)
    assert found.loss == pytest.approx(newton(x, shown, 3, 0.01), abs=1e-4)


def test_it_goes_on_from_another_solution_to_the_same_optimum() -> None:
    x, labels = classes_of(300, 6, 3, seed=4)
    far = fit_linear(x, labels, 10.0)
    again = fit_linear(x, labels, 0.01, start=far)
    assert again.loss == pytest.approx(fit_linear(x, labels, 0.01).loss, abs=1e-5)
    one_step = fit_linear(x, labels, 0.01, start=again, iterations=1)  # it starts where it was told
    assert one_step.loss == pytest.approx(again.loss, abs=1e-6)


def test_tens_of_iterations_are_enough_with_many_unbalanced_classes() -> None:
    x, labels = classes_of(1500, 16, 30, seed=6)
    labels[::3] = 0
    best = fit_linear(x, labels, 1e-3)
    # Without a unit of its own for the bias it is 50 times as far.
    assert fit_linear(x, labels, 1e-3, iterations=25).loss == pytest.approx(best.loss, abs=5e-4)
    assert best.loss <= fit_linear(x, labels, 1e-3, iterations=25).loss


def test_certain_predictions_are_no_denormals_and_no_infinities(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(3).repeat(40)
    x = torch.eye(3)[labels]
    for certain in (95.0, 1e5):  # exp(-95) is a denormal, with which everything takes ten times as long
        errors = []
        matmul = Tensor.__matmul__

        def watched(a: Tensor, b: Tensor) -> Tensor:
            if b.shape == (120, 3):
                errors.append(b[b != 0].abs().min())  # noqa: B023 (called at once)
            return matmul(a, b)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "__matmul__", watched)
            found = fit_linear(x, labels, 1e-6, start=Linear(certain * torch.eye(3), torch.zeros(3), 0.0, 0.0))
        assert torch.isfinite(found.weight).all() and top1(found.scores(x), labels) == 100
        assert errors and min(errors) > torch.finfo(torch.float32).tiny
    assert math.isfinite(found.loss)


def test_features_without_spread_give_the_classes_shares() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    found = fit_linear(torch.full((40, 4), 2.0), labels, 0.1)
    assert found.scores(torch.full((1, 4), 2.0)).softmax(1)[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-3)
    assert fit_linear(torch.zeros(40, 2), labels, 0.1, classes=5).bias.shape == (5,)


def test_l2_is_chosen_on_validation_from_large_to_small_and_all_is_refitted() -> None:
    train, validation = classes_of(120, 6, 3, seed=5), classes_of(90, 6, 3, seed=5)
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1

    best, measured = choose_l2(train, validation, top1, (1e-3, 10.0, 1e-1), on_step=step)
    assert list(measured) == [10.0, 1e-1, 1e-3] and seen == 3
    assert best.l2 == max(measured, key=lambda l2: (measured[l2], l2))
    both = torch.cat([train[0], validation[0]]), torch.cat([train[1], validation[1]])
    assert best.loss == pytest.approx(fit_linear(*both, best.l2).loss, abs=1e-5)
    # Of equals the largest.
    assert choose_l2(train, validation, lambda scores, labels: 1.0, (1e-3, 10.0))[0].l2 == 10.0
    falling = iter(range(0, -45, -1))  # the whole grid, its largest first
    assert choose_l2(train, validation, lambda scores, labels: next(falling))[0].l2 == L2_GRID[-1]
    # A class that only the validation part has is one all the same.
    labels = torch.where(validation[1] == 2, 3, validation[1])
    assert choose_l2(train, (validation[0], labels), top1, (0.1,))[0].bias.shape == (4,)


def test_the_grid_is_the_papers() -> None:
    assert len(L2_GRID) == 45
    assert (L2_GRID[0], L2_GRID[-1]) == pytest.approx((1e-6, 1e5))
    assert [L2_GRID[i + 1] / L2_GRID[i] for i in range(44)] == pytest.approx([10 ** (11 / 44)] * 44)


def test_accuracies_by_hand() -> None:
    scores = torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 1, 2], [2, 1, 0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert top1(scores, labels) == 50
    assert mean_per_class(scores, labels) == pytest.approx((200 / 3 + 0) / 2)  # class 2 is not there


def test_eleven_point_precision_by_hand() -> None:
    # One class, by falling score: right, wrong, right, wrong, wrong; recall 1/2, 1/2, 1, 1, 1.
    # Precision at recall >= t: 1 for t to 0.5 (six points), 2/3 above (five).
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    labels = torch.tensor([[1], [0], [1], [0], [0]])
    first = 100 * (6 * 1 + 5 * 2 / 3) / 11
    assert map11(scores, labels) == pytest.approx(first)
    # Ten right: recall goes by tenths, and 0.3 of it, which floats miss, counts.
    many = torch.arange(20.0, 0, -1)[:, None]
    shown = torch.tensor([[i % 2 == 0] for i in range(20)]).long()
    points = [max((j + 1) / (2 * j + 1) for j in range(10) if (j + 1) / 10 >= t / 10 - 1e-12) for t in range(11)]
    assert map11(many, shown) == pytest.approx(100 * sum(points) / 11)
    # The mean over classes; one that nothing shows is left out.
    two = torch.cat([scores, scores.flip(0), scores], 1)
    shows = torch.cat([labels, labels, torch.zeros_like(labels)], 1)
    # The second, by falling score: wrong, wrong, right, wrong, right: 1/3, 2/5 -> 2/5 everywhere.
    assert map11(two, shows) == pytest.approx((first + 100 * 2 / 5) / 2)


@pytest.mark.parametrize("percent, n", [(0, 10), (100, 10), (50, 7), (33.3, 10_000), (99.5, 200)])
def test_wilsons_interval_solves_its_equation(percent: float, n: int) -> None:
    # Its ends are the p at which what was measured is 1.96 standard errors away.
    low, high = interval(percent, n)
    assert 0 <= low <= percent + 1e-9 and percent - 1e-9 <= high <= 100
    for end in (low, high):
        p = end / 100
        if 1e-9 < p < 1 - 1e-9:
            assert abs(percent / 100 - p) / math.sqrt(p * (1 - p) / n) == pytest.approx(1.959964, rel=1e-6)
    assert interval(50, 100) == pytest.approx((40.38, 59.62), abs=0.01)  # as tables have it
