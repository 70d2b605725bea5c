import numpy as np
import pytest
import torch

from simclr_hub import SimCLRConfig, SimCLRImageProcessor, SimCLRModel
from simclr_hub.training.data import ImageArray
from simclr_hub.training.protocols import features, knn_accuracy, precision_at


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
