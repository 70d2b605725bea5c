import logging
import math

import pytest
import torch

from simclr_hub.errors import TrainingError
from simclr_hub.training.monitor import Monitor, OnlineClassifier, contrastive_top1, draw_curves


def scattered(n: int, d: int = 16) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_means_are_those_of_the_steps_since_the_last_call() -> None:
    monitor = Monitor()
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        monitor.add(step, torch.tensor(loss), scattered(8), {"probe_top1": torch.tensor(loss / 10)})
    means = monitor.means(8)
    assert means["probe_top1"] == pytest.approx(0.3) and 0.5 < means["z_spread"] <= 1
    assert means["images_per_second"] > 0 and means["data_wait"] == 0
    monitor.add(3, torch.tensor(1.0), scattered(8), {"probe_top1": torch.tensor(1.0)})
    assert monitor.means(8)["probe_top1"] == 1
    assert monitor.means(8) == {}


def test_time_spent_waiting_for_data_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("simclr_hub.training.monitor.time.monotonic", lambda: now[0])
    monitor = Monitor()
    with monitor.waiting():
        now[0] += 1
    now[0] += 3
    monitor.add(0, torch.tensor(1.0), scattered(20), {})
    means = monitor.means(20)
    assert means["data_wait"] == pytest.approx(0.25) and means["images_per_second"] == pytest.approx(2.5)


def test_the_first_step_whose_loss_is_no_number_is_named() -> None:
    monitor = Monitor()
    for step, loss in enumerate((1.0, math.nan, 2.0, math.inf)):
        monitor.add(step, torch.tensor(loss), scattered(4), {})
    with pytest.raises(TrainingError, match=r"not finite at step 1;.*learning_rate"):
        monitor.check_finite()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(logging.getLogger("simclr_hub.training.monitor"), "warning", texts.append)
    return texts


def test_collapse_is_named_once(warnings: list[str]) -> None:
    monitor = Monitor()
    alike = torch.ones(8, 4) + 1e-3 * scattered(8, 4)
    for step in range(3):
        monitor.add(step, torch.tensor(1.0), alike, {})
        monitor.means(8)
    assert len(warnings) == 1 and warnings[0].startswith("collapse")


def test_a_loss_of_chance_is_named_when_it_stays(warnings: list[str]) -> None:
    monitor = Monitor()
    losses = [math.log(7)] * 4 + [1.5] + [math.log(7)] * 5
    for step, loss in enumerate(losses):
        assert warnings == []
        monitor.add(step, torch.tensor(loss), scattered(8), {})
        monitor.means(8)
    assert len(warnings) == 1 and "no better than guessing among 7 others" in warnings[0]


def test_top1_counts_views_that_find_their_own() -> None:
    a = torch.eye(4)
    assert contrastive_top1(a, a * 3) == 1
    assert contrastive_top1(a, a[[1, 0, 2, 3]]) == 0.5


def test_the_probe_learns_and_leaves_h_alone() -> None:
    h = scattered(64).requires_grad_()
    labels = (h[:, 0] > 0).long()
    probe = OnlineClassifier(16, 2)
    _, first = probe.step(h, labels, 1.0)
    for _ in range(50):
        _, last = probe.step(h, labels, 1.0)
    assert last > 0.95 and last > first and h.grad is None


def test_a_probe_goes_on_from_its_state() -> None:
    h, labels = scattered(32), torch.arange(32) % 3
    whole, half = OnlineClassifier(16, 3), OnlineClassifier(16, 3)
    for _ in range(2):
        whole.step(h, labels, 0.1)
        half.step(h, labels, 0.1)
    resumed = OnlineClassifier(16, 3)
    resumed.load_state_dict(half.state_dict())
    for probe in (whole, resumed):
        probe.step(h, labels, 0.1)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_curves_show_what_was_logged(tmp_path) -> None:
    log = [{"step": s, "loss": 3.0 / (s + 1), "contrastive_top1": 0.1 * s, "learning_rate": 1.0} for s in range(5)]
    draw_curves([*log, {"step": 4, "eval_knn": 33.0}], tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
