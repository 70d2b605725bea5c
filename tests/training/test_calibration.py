import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simclr_hub.training.calibration import BINS, calibration, fit_temperature
from simclr_hub.training.measures import _scaled
from simclr_hub.training.protocols import fit_linear


def test_by_hand() -> None:
    # Confidences 0.95, 0.95, 0.62, 0.62, 0.62; right: yes, no, yes, no, no.
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.62, 0.38], [0.38, 0.62], [0.62, 0.38]])
    labels = torch.tensor([0, 1, 0, 0, 1])
    found = calibration(p, labels)
    assert found["ece"] == pytest.approx(100 * (2 * abs(0.95 - 0.5) + 3 * abs(0.62 - 1 / 3)) / 5, abs=1e-4)
    brier = [2 * 0.05**2, 2 * 0.95**2, 2 * 0.38**2, 2 * 0.62**2, 2 * 0.62**2]
    assert found["brier"] == pytest.approx(sum(brier) / 5, abs=1e-5)
    likelihoods = [0.95, 0.05, 0.62, 0.38, 0.38]
    assert found["nll"] == pytest.approx(-sum(map(math.log, likelihoods)) / 5, abs=1e-5)
    assert [(bin["images"], round(bin["accuracy"], 3)) for bin in found["bins"]] == [(3, 0.333), (2, 0.5)]
    assert [bin["above"] for bin in found["bins"]] == [9 / BINS, 14 / BINS]


def test_certainty_and_bins_ends() -> None:
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert calibration(sure, torch.tensor([0, 1])) | {"bins": []} == {"ece": 0, "brier": 0, "nll": 0, "bins": []}
    found = calibration(sure, torch.tensor([0, 0]))
    assert (found["ece"], found["brier"], found["nll"]) == (50, 1, None)  # no infinity in JSON
    third = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    assert calibration(third, torch.tensor([0]))["bins"][0]["to"] == 5 / BINS  # an end belongs to the bin below


def test_the_temperature_is_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4000, 5, generator=generator) * 2
    labels = scores.softmax(1).multinomial(1, generator=generator)[:, 0]
    found = fit_temperature(3 * scores, labels)  # over-confident by 3
    assert found == pytest.approx(3, rel=0.1)

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(3 * scores.double() / temperature, labels))

    assert nll(found) < min(nll(found * 1.001), nll(found / 1.001))
    assert calibration((3 * scores / found).softmax(1), labels)["ece"] < 3
    assert fit_temperature(scores, scores.argmax(1)) == pytest.approx(0.01)  # always right: its end


def test_the_temperature_is_fitted_on_labels_that_its_classifier_did_not_see() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(260, 30, generator=generator), torch.randint(0, 3, (260,), generator=generator)
    x[:, 0] += labels
    rest, validation = (x[:100], labels[:100]), (x[100:160], labels[100:160])
    best = fit_linear(x[:160], labels[:160], 1e-3)
    features: Any = SimpleNamespace(evaluation=x[160:], labels=labels[160:])
    found = _scaled(best, rest, validation, features)
    honest = fit_linear(*rest, 1e-3, 3)
    assert found["temperature"] == pytest.approx(
        fit_temperature(honest.scores(validation[0]), validation[1]), rel=1e-2
    )
    assert found["temperature"] > 1.5 * fit_temperature(best.scores(validation[0]), validation[1])
    assert found["nll, scaled"] < calibration(best.scores(x[160:]).softmax(1), labels[160:])["nll"]
