from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from simclr_hub import SimCLRConfig, SimCLRForImageClassification
from simclr_hub.training.optimization import LARS, parameter_groups

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
    assert max(largest_errors(weight_decay=1e-4)) < 1.3e-7  # float32's spacing at 1
    # The decay's effect is small: this shows that the comparison sees it.
    assert min(largest_errors(weight_decay=0)) > 2e-7


def test_groups_exclude_biases_batch_norm_and_the_classifier() -> None:
    model = SimCLRForImageClassification(
        SimCLRConfig.v1(width_multiplier=0.25, depth=18, se_ratio=0.25, num_labels=3)
    ).requires_grad_(True)
    model.simclr.projection.layers[0].requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    adapted, plain = parameter_groups(model, weight_decay=0.5)
    adapted_names = {names[id(p)] for p in adapted["params"]}
    plain_names = {names[id(p)] for p in plain["params"]}
    assert adapted["weight_decay"] == 0.5 and plain["weight_decay"] == 0 and plain["adapt"] is False
    assert adapted_names | plain_names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not adapted_names & plain_names
    modules = dict(model.named_modules())
    for name in adapted_names | plain_names:
        module, _, kind = name.rpartition(".")
        wants_trust = (
            kind == "weight" and isinstance(modules[module], (nn.Conv2d, nn.Linear)) and module != "classifier"
        )
        assert (name in adapted_names) == wants_trust, name


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
