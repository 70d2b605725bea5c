"""Fine-tuning, linear evaluation and distillation equal the official code, step by step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_hub import SimCLRForImageClassification
from simclr_hub.checkpoints.convert import _tensor_names, infer_config
from simclr_hub.training.distributed import use_biased_moving_variance
from simclr_hub.training.losses import nt_xent_loss
from simclr_hub.training.monitor import OnlineClassifier
from simclr_hub.training.operations import resize
from simclr_hub.training.optimization import create_optimizer, official_steps, scale_learning_rate, warmup_cosine
from simclr_hub.training.supervised import (
    TRAINED_FROM,
    choose_trained,
    distillation_loss,
    mixed_loss,
    start_from_zeros,
    supervised_loss,
    training_logits,
    training_mode,
)

DATA = Path(__file__).parents[1] / "data" / "official" / "finetune"


def ours(array: np.ndarray) -> Tensor:
    """From TensorFlow's layout, HWIO or IO, to OIHW or OI."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array))


def network(name: str, layer: int) -> tuple[SimCLRForImageClassification, dict[str, str], Any]:
    """The network of a fixture with its first weights, the names of its variables by our keys, and the fixture."""
    data = np.load(DATA / f"steps_network_{name}.npz")
    before = {key.removeprefix("before/"): data[key] for key in data.files if key.startswith("before/")}
    config = infer_config({key: value.shape for key, value in before.items()}, classifier_layer=layer, image_size=40)
    model = SimCLRForImageClassification(config)
    names = dict(_tensor_names(model))
    state = {key: ours(before[variable]) for key, variable in names.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    use_biased_moving_variance(model)
    return model, names, data


def images_of(data: Any, step: int) -> Tensor:
    return torch.from_numpy(data["images"][step]).permute(0, 3, 1, 2).float() / 255


def relative(a: Tensor, b: np.ndarray) -> float:
    expected = torch.from_numpy(np.asarray(b))
    return float((a.detach() - expected).abs().max() / expected.abs().max())


def assert_weights_are(model: SimCLRForImageClassification, names: dict[str, str], data: Any, case: Any) -> None:
    """Each variable changed by what it should, within 1e-2 of its largest change; the others are bit-identical."""
    state = model.state_dict()
    for key, variable in names.items():
        before = data[f"before/{variable}"]
        if case["classifier_zeroed"] and variable.startswith("head_supervised"):
            before = np.zeros_like(before)
        if f"after/{variable}" in case.files:
            change = ours(case[f"after/{variable}"]) - ours(before)
            error = (state[key] - ours(before) - change).abs().max() / change.abs().max()
            assert error < 1e-2, f"{variable}: {error:.1e}"
        else:
            assert torch.equal(state[key], ours(before)), f"{variable} changed"


CASES = {  # network, head
    "v2_selector1_lars": ("v2", "frozen"),
    "v2_selector1_lars_tf2": ("v2", "trained"),
    "partial_after_block2_momentum": ("v2", "frozen"),
    "v1_whole_momentum": ("v1", "frozen"),
    "linear_evaluation_momentum": ("v1", "frozen"),
}


def replay(
    name: str, *, head: str = "", trained_from: str = "", layer: int | None = None, nesterov: bool = True
) -> tuple[SimCLRForImageClassification, dict[str, str], Any, Any, list[Tensor], list[float]]:
    """Five official steps by our code; the arguments replace what the fixture says."""
    case = np.load(DATA / f"steps_{name}.npz")
    flags = json.loads(str(case["flags"]))
    which, official_head = CASES[name]
    layer = flags["ft_proj_selector"] if layer is None else layer
    model, names, data = network(which, layer)
    if case["classifier_zeroed"]:
        start_from_zeros(model.classifier)
    choose_trained(model, trained_from or TRAINED_FROM[flags["fine_tune_after_block"] + 1], head or official_head)
    batch = flags["train_batch_size"]
    peak = scale_learning_rate(flags["learning_rate"], batch, flags["learning_rate_scaling"])
    optimizer = create_optimizer(
        model, "lars" if flags["optimizer"] == "lars" else "sgd", peak, flags["weight_decay"], flags["momentum"]
    )
    if not nesterov:
        for group in optimizer.param_groups:
            group["nesterov"] = False
    _, total = official_steps(flags["num_examples"], batch, flags["train_epochs"], 0)
    scheduler = warmup_cosine(optimizer, 0, total)
    logits, losses = [], []
    for step in range(5):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(float(case["lr"][step]), rel=1e-6)
        training_mode(model)
        # Contiguous: these lie pixel by pixel, and with fewer than 8 channels, as only the fixtures' networks have,
        # oneDNN's AVX2 kernel for the gradient of 1x1 weights with stride 2 writes beyond its memory (torch 2.14.1).
        logits.append(training_logits(model, images_of(data, step).contiguous()))
        loss = supervised_loss(logits[-1], torch.from_numpy(data["labels"][step]).long())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model, names, data, case, logits, losses


@pytest.mark.parametrize("name", CASES)
def test_five_steps_are_the_official_ones(name: str) -> None:
    model, names, data, case, logits, losses = replay(name)
    assert relative(torch.stack(logits), case["logits"]) < 1e-4  # the first are 0 where the classifier is
    expected = case["loss" if "loss" in case.files else "loss_supervised"]
    assert losses == pytest.approx(expected.tolist(), rel=1e-5)
    assert_weights_are(model, names, data, case)
    model.eval()
    with torch.no_grad():
        assert relative(model(images_of(data, 0)).logits, case["eval_logits_after"]) < 1e-4


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("v2_selector1_lars", {"head": "trained"}),
        ("v2_selector1_lars_tf2", {"head": "frozen"}),
        ("v2_selector1_lars", {"trained_from": "stage1"}),
        ("partial_after_block2_momentum", {"trained_from": "stage2"}),
        ("partial_after_block2_momentum", {"trained_from": "stage4"}),
        ("partial_after_block2_momentum", {"nesterov": False}),
        ("v1_whole_momentum", {"nesterov": False}),
        ("linear_evaluation_momentum", {"trained_from": "stage4"}),
    ],
)
def test_another_rule_would_be_seen(name: str, wrong: dict[str, Any]) -> None:
    model, names, data, case, logits, _ = replay(name, **wrong)
    with pytest.raises(AssertionError):
        assert_weights_are(model, names, data, case)
        assert relative(torch.stack(logits), case["logits"]) < 1e-4


LOSSES = np.load(DATA / "losses.npz")


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
def test_distillation_is_the_official_loss(temperature: float) -> None:
    student = torch.from_numpy(LOSSES["student_logits"]).requires_grad_()
    teacher = torch.from_numpy(LOSSES["teacher_logits"]).requires_grad_()
    loss = distillation_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(float(LOSSES[f"kd_T{temperature}/loss"]), rel=1e-6)
    np.testing.assert_allclose(student.grad, LOSSES[f"kd_T{temperature}/grad_student"], rtol=0, atol=1e-6)
    assert teacher.grad is None


@pytest.mark.parametrize("weights", ["ones", "mask", "weights", "none"])
def test_the_supervised_loss_is_the_official_one(weights: str) -> None:
    logits = torch.from_numpy(LOSSES["student_logits"]).requires_grad_()
    each = torch.from_numpy(LOSSES[f"ce_{weights}/weights"])
    loss = supervised_loss(logits, torch.from_numpy(LOSSES["labels"]).long(), each)
    loss.backward()
    assert loss.item() == pytest.approx(float(LOSSES[f"ce_{weights}/loss"]), rel=1e-6)
    np.testing.assert_allclose(logits.grad, LOSSES[f"ce_{weights}/grad_student"], rtol=0, atol=1e-6)


MIXED = sorted(key.removesuffix("/loss") for key in LOSSES.files if key.startswith("mix") and key.endswith("/loss"))


@pytest.mark.parametrize("case", MIXED)
def test_labels_are_mixed_in_by_alpha(case: str) -> None:
    temperature, alpha = (float(part) for part in case.removeprefix("mix_T").split("_alpha"))
    student = torch.from_numpy(LOSSES["student_logits"]).requires_grad_()
    labels = torch.from_numpy(LOSSES["labels"]).long()
    labels[int(LOSSES["mix/labelled_first"]) :] = -1
    loss = mixed_loss(student, torch.from_numpy(LOSSES["teacher_logits"]), labels, temperature, alpha)
    loss.backward()
    assert loss.item() == pytest.approx(float(LOSSES[f"{case}/loss"]), rel=1e-6)
    np.testing.assert_allclose(student.grad, LOSSES[f"{case}/grad_student"], rtol=0, atol=1e-6)


SCHEDULES = np.load(DATA / "schedules.npz")


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in SCHEDULES.files}))
def test_schedules_are_the_official_ones(name: str) -> None:
    config = json.loads(str(SCHEDULES[f"{name}/config"]))
    peak, warmup, total = config["learning_rate"], 0, config.get("total_steps", 0)
    if "train_batch_size" in config:  # all but the notebook's
        batch = config["train_batch_size"]
        warmup, total = official_steps(config["num_examples"], batch, config["train_epochs"], config["warmup_epochs"])
        peak = scale_learning_rate(peak, batch, config["learning_rate_scaling"])
    factor = warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=peak), warmup, total).lr_lambdas[0]
    rates = [peak * factor(int(step)) for step in SCHEDULES[f"{name}/steps"]]
    np.testing.assert_allclose(rates, SCHEDULES[f"{name}/learning_rate"], rtol=0, atol=1e-6 * peak)


PREPROCESSED = np.load(DATA / "finetune_preprocess.npz")


@pytest.mark.parametrize("case", sorted({key.split("/")[0] for key in PREPROCESSED.files if "/" in key}))
def test_training_images_are_the_official_ones(case: str) -> None:
    read = {key: PREPROCESSED[f"{case}/{key}"] for key in ("image", "box_y_x_h_w", "flip", "size", "out")}
    image = torch.from_numpy(PREPROCESSED[str(read["image"])]).permute(2, 0, 1)[None]
    box = torch.from_numpy(read["box_y_x_h_w"]).long()[None]
    out = resize(image, box, int(read["size"]))
    out = (out.flip(-1) if read["flip"] else out).clamp(0, 1)[0].permute(1, 2, 0)
    np.testing.assert_allclose(out, read["out"], rtol=0, atol=5e-6)


def test_the_online_classifier_of_pretraining_is_the_official_one() -> None:
    case = np.load(DATA / "steps_pretraining_with_online_classifier_tf2.npz")
    flags = json.loads(str(case["flags"]))
    model, names, data = network("v2", 0)
    online = OnlineClassifier(model.config.hidden_size, 7, flags["weight_decay"], flags["momentum"])
    online.classifier.load_state_dict(model.classifier.state_dict())
    model.classifier.requires_grad_(False)
    peak = scale_learning_rate(flags["learning_rate"], flags["train_batch_size"], flags["learning_rate_scaling"])
    optimizer = create_optimizer(model, "lars", peak, flags["weight_decay"], flags["momentum"])
    scheduler = warmup_cosine(optimizer, 0, official_steps(40, 8, 1, 0)[1])
    model.train()
    for step in range(2):
        images = images_of(data, step)
        output = model.simclr(torch.cat([images, images.flip(-1)]), output_projections=True)
        h, (a, b) = output.pooler_output, output.projections[-1].chunk(2)
        assert relative(online.classifier(h), case["logits"][step]) < 1e-4
        loss = 2 * nt_xent_loss(a, b, flags["temperature"])  # the official code logs the sum of both views' means
        assert loss.item() == pytest.approx(float(case["loss_contrastive"][step]), rel=1e-5)
        labels = torch.from_numpy(data["labels"][step]).long().repeat(2)
        supervised, _ = online.step(h, labels, optimizer.param_groups[0]["lr"])
        assert supervised.item() == pytest.approx(float(case["loss_supervised"][step]), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.classifier.load_state_dict(online.classifier.state_dict())
    assert_weights_are(model, names, data, case)


def test_processes_with_different_numbers_of_labels_have_the_mean_of_all() -> None:
    student, teacher = torch.randn(8, 3), torch.randn(8, 3)
    labels = torch.tensor([0, 1, 2, 1, -1, -1, 0, -1])
    whole = mixed_loss(student, teacher, labels, 2.0, 0.3)
    mean = 5 / 2  # labelled rows of a process
    halves = [
        mixed_loss(*(x[rows] for x in (student, teacher, labels)), 2.0, 0.3, mean) for rows in (slice(4), slice(4, 8))
    ]
    assert float(sum(halves) / 2) == pytest.approx(float(whole), rel=1e-6)
    unlabelled = mixed_loss(student, teacher, torch.full((8,), -1), 2.0, 0.3)
    assert torch.equal(unlabelled, 0.3 * distillation_loss(student, teacher, 2.0))
