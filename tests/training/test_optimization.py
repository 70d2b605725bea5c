import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from simclr_hub import SimCLRConfig, SimCLRForImageClassification, SimCLRModel
from simclr_hub.training.optimization import (
    LARS,
    create_optimizer,
    official_steps,
    parameter_groups,
    scale_learning_rate,
    warmup_cosine,
)

OFFICIAL = np.load(Path(__file__).parents[1] / "data" / "official" / "lars.npz")
NAMES = [key.removeprefix("param0/") for key in OFFICIAL if key.startswith("param0/")]
EXCLUDED = ("batch_normalization", "bias", "head_supervised")  # the official code's list


def largest_errors(weight_decay: float) -> list[float]:
    """Of the weights against the official ones, after each of 4 steps."""
    parameters = {name: nn.Parameter(torch.tensor(OFFICIAL[f"param0/{name}"])) for name in NAMES}
    plain = [p for name, p in parameters.items() if any(part in name for part in EXCLUDED)]
    adapted = [p for name, p in parameters.items() if not any(part in name for part in EXCLUDED)]
    assert len(plain) == 4 and len(adapted) == 2
    optimizer = LARS([{"params": adapted, "weight_decay": weight_decay}, {"params": plain, "adapt": False}], lr=0)
    errors = []
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = float(OFFICIAL[f"lr/{step}"])
        for name, p in parameters.items():
            p.grad = torch.tensor(OFFICIAL[f"grad{step}/{name}"])
        optimizer.step()
        errors.append(
            max(
                np.abs(p.detach().numpy() - OFFICIAL[f"param{step + 1}/{name}"]).max()
                for name, p in parameters.items()
            )
        )
    return errors


def test_equals_the_official_optimizer_step_by_step() -> None:
    errors = largest_errors(weight_decay=1e-4)
    assert len(errors) == 4 and max(errors) < 1e-7  # below float32's spacing at 1, where some of the weights are
    # The decay's effect is small: this shows that the comparison sees it.
    assert min(largest_errors(weight_decay=0)) > 2e-7


def test_groups_exclude_biases_batch_norm_and_the_classifier() -> None:
    model = SimCLRForImageClassification(
        SimCLRConfig.v1(width_multiplier=0.25, depth=18, se_ratio=0.25, num_labels=3)
    ).requires_grad_(True)
    model.simclr.projection.layers[0].requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    adapted, plain, classifier = parameter_groups(model, weight_decay=0.5)
    adapted_names = {names[id(p)] for p in adapted["params"]}
    plain_names = {names[id(p)] for p in plain["params"]} | {"classifier.weight"}
    assert adapted["weight_decay"] == 0.5 and plain["weight_decay"] == 0 and plain["adapt"] is False
    assert [names[id(p)] for p in classifier["params"]] == ["classifier.weight"]
    assert classifier["weight_decay"] == 0.5 and classifier["adapt"] is False  # the official loss decays it
    assert "classifier.bias" in plain_names and len(parameter_groups(model.simclr, 0.5)) == 2
    assert adapted_names | plain_names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not adapted_names & plain_names
    modules = dict(model.named_modules())
    for name in adapted_names | plain_names:
        module, _, kind = name.rpartition(".")
        wants_trust = (
            kind == "weight" and isinstance(modules[module], (nn.Conv2d, nn.Linear)) and module != "classifier"
        )
        assert (name in adapted_names) == wants_trust, name


def step_by_name(optimizer_name: str, weight_decay: float, steps: int = 2) -> tuple[dict[str, str], nn.Module]:
    """A classifier after steps with gradients of 0, and the kind of each parameter: only decay can move it."""
    torch.manual_seed(0)
    model = SimCLRForImageClassification(SimCLRConfig.v1(width_multiplier=0.25, depth=18, se_ratio=0.25, num_labels=3))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = create_optimizer(model, optimizer_name, lr=0.1, weight_decay=weight_decay)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    modules = dict(model.named_modules())
    kinds = {}
    for name, _ in model.named_parameters():
        module, _, kind = name.rpartition(".")
        kinds[name] = f"{type(modules[module]).__name__}.{kind}"
    return kinds, model


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("lars", {"Conv2d.weight", "Linear.weight"}),
        ("sgd", {"Conv2d.weight", "Conv2d.bias", "Linear.weight", "Linear.bias"}),
        ("adamw", {"Conv2d.weight", "Linear.weight"}),
    ],
)
def test_what_each_optimizer_decays(name: str, decayed: set[str]) -> None:
    kinds, model = step_by_name(name, weight_decay=0.5)
    assert set(kinds.values()) == decayed | {
        "Conv2d.weight", "Conv2d.bias", "Linear.weight", "Linear.bias",
        "BatchNorm2d.weight", "BatchNorm2d.bias", "BatchNorm1d.weight", "BatchNorm1d.bias",
    }  # fmt: skip
    moved = {kinds[n] for n, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert moved == decayed


def test_sgd_is_the_official_momentum_optimizer() -> None:
    w, velocity, decay = 1.0, 0.0, 0.1
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = create_optimizer(model, "sgd", lr=0.5, weight_decay=decay)
    for gradient in (0.3, -0.2, 0.1):
        g = gradient + decay * w  # L2 in the loss
        velocity = 0.9 * velocity + g
        w -= 0.5 * (g + 0.9 * velocity)  # Nesterov
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
        assert model.weight.item() == pytest.approx(w, rel=1e-6) and model.bias.item() == pytest.approx(w, rel=1e-6)


def test_lars_state_resumes() -> None:
    def run(steps: int, state: dict[str, object] | None, model: nn.Module) -> tuple[nn.Module, dict[str, object]]:
        optimizer = create_optimizer(model, "lars", lr=0.5, weight_decay=1e-4)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            for p in model.parameters():
                p.grad = p.detach().sin()
            optimizer.step()
        return model, optimizer.state_dict()

    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    whole, _ = run(4, None, first)
    _, state = run(2, None, second)
    resumed, _ = run(2, state, second)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_learning_rates_scale_with_the_batch() -> None:
    assert scale_learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert scale_learning_rate(1.0, 512, "linear") == 2.0  # CIFAR-10's peak
    assert scale_learning_rate(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert scale_learning_rate(0.3, 4096, "none") == 0.3
    with pytest.raises(ValueError, match="lr_scaling='log'"):
        scale_learning_rate(0.3, 4096, "log")


def test_official_steps() -> None:
    # ImageNet, 1,281,167 images, batch 4096, 100 epochs; CIFAR-10, 50,000, batch 512, 1000 epochs.
    assert official_steps(1_281_167, 4096, 100, 10) == (3127, 31279)
    assert official_steps(50_000, 512, 1000, 10) == (976, 97657)
    assert official_steps(50_000, 512, 100, 0) == (0, 9766)
    assert official_steps(1000, 300, 1, 0.5) == (1, 4)


def test_the_schedule_is_the_official_one_step_by_step() -> None:
    warmup, total = 4, 11
    p = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([p], lr=2.0)
    scheduler = warmup_cosine(optimizer, warmup, total)
    seen = []
    for _ in range(13):
        seen.append(optimizer.param_groups[0]["lr"])
        p.grad = torch.zeros(())
        optimizer.step()
        scheduler.step()
    expected = [2.0 * step / 4 for step in range(4)]
    expected += [2.0 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 7)) for step in range(4, 11)] + [0.0, 0.0]
    assert seen == pytest.approx(expected, abs=1e-12)
    assert seen[0] == 0 and seen[4] == 2.0 and seen[11] == 0
    without = warmup_cosine(torch.optim.SGD([p], lr=2.0), 0, 10)
    assert without.get_last_lr() == [2.0]
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        warmup_cosine(optimizer, -1, 10)


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="optimizer='adam' is not one of lars, sgd, adamw"):
        create_optimizer(SimCLRModel(SimCLRConfig.v1(18, width_multiplier=0.25)), "adam", 0.1)


def test_a_zero_weight_or_gradient_has_trust_1() -> None:
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    LARS([p], lr=0.5).step()
    assert torch.equal(p.detach(), torch.full((3,), -0.5))
    before = p.detach().clone()
    p.grad = torch.zeros(3)
    LARS([p], lr=0.5).step()
    assert torch.equal(p.detach(), before)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    p = nn.Parameter(torch.ones(3))
    assert LARS([p], lr=0.5, weight_decay=0.1).step(lambda: 7) == 7
    assert torch.equal(p.detach(), torch.ones(3))


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "trust_coefficient"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_bad_arguments_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LARS([nn.Parameter(torch.ones(3))], **{"lr": 0.1, name: value})
