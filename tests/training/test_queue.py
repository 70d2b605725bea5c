from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simclr_hub import SimCLRConfig, SimCLRModel
from simclr_hub.training.large_batch import MomentumMemory
from simclr_hub.training.losses import nt_xent_loss, nt_xent_loss_to_keys

CONFIG = SimCLRConfig(
    depths=(1, 1), layer_type="basic", width_multiplier=0.125, stem_type="small", projection_dim=4, image_size=16
)


def model() -> SimCLRModel:
    torch.manual_seed(0)
    return SimCLRModel(CONFIG).train()


def numbered(first: int, n: int) -> Tensor:
    """Keys that say when they came, (n, 4)."""
    return torch.arange(first, first + n, dtype=torch.float32)[:, None].expand(n, 4)


def enqueue(memory: MomentumMemory, keys: Tensor) -> None:
    memory.loss(torch.randn(len(keys), 4), keys)


def test_the_queue_is_a_ring_that_keeps_the_newest() -> None:
    memory = MomentumMemory(model(), size=10)
    assert memory.negatives.shape == (0, 4)
    enqueue(memory, numbered(1, 4))
    assert memory.negatives[:, 0].tolist() == [1, 2, 3, 4]
    enqueue(memory, numbered(5, 4))
    enqueue(memory, numbered(9, 4))
    assert memory.negatives[:, 0].tolist() == [11, 12, 3, 4, 5, 6, 7, 8, 9, 10]
    enqueue(memory, numbered(13, 26))  # more than it holds
    assert sorted(memory.negatives[:, 0].tolist()) == list(range(29, 39))
    enqueue(memory, numbered(39, 4))
    assert sorted(memory.negatives[:, 0].tolist()) == list(range(33, 43))


def test_the_loss_sees_the_queue_of_earlier_batches_only() -> None:
    memory = MomentumMemory(model(), size=64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 8, 4, generator=generator)
    keys = torch.randn(3, 8, 4, generator=generator)
    first = memory.loss(z[0], keys[0], 0.3)
    torch.testing.assert_close(first, nt_xent_loss_to_keys(*z[0].chunk(2), *keys[0].chunk(2), 0.3))
    second = memory.loss(z[1], keys[1], 0.3)
    expected = nt_xent_loss_to_keys(*z[1].chunk(2), *keys[1].chunk(2), 0.3, negatives=keys[0])
    torch.testing.assert_close(second, expected)
    memory.eval()  # takes nothing in
    again = [memory.loss(z[2], keys[2], 0.3) for _ in range(2)]
    assert torch.equal(*again) and memory.enqueued == 16


def test_a_fresh_memory_gives_nt_xents_value_but_half_of_its_gradient() -> None:
    network = model()
    memory = MomentumMemory(network)
    pixels = torch.rand(8, 3, 16, 16)
    z = network(pixels, output_projections=True).projections[-1]
    keys = memory.embed(pixels)
    torch.testing.assert_close(keys, z.detach())  # a copy, normalising by the batch as the encoder does
    loss, plain = memory.loss(z, keys), nt_xent_loss(*z.chunk(2))
    torch.testing.assert_close(loss, plain)
    ours, theirs = torch.autograd.grad(loss, z, retain_graph=True)[0], torch.autograd.grad(plain, z)[0]
    assert not torch.allclose(ours, theirs)  # none flows through the keys


def test_no_gradient_reaches_keys_and_the_queue_may_move_before_the_backward_pass() -> None:
    memory = MomentumMemory(model(), size=12)
    enqueue(memory, numbered(1, 8).cos())
    z = torch.randn(8, 4, requires_grad=True)
    keys = torch.randn(8, 4, requires_grad=True)
    negatives = memory.negatives.clone()
    loss = memory.loss(z, keys)
    enqueue(memory, numbered(1, 8).sin())
    loss.backward()
    assert keys.grad is None and not memory.queue.requires_grad
    assert not any(p.requires_grad for p in memory.encoder.parameters())
    again = z.detach().requires_grad_()
    nt_xent_loss_to_keys(*again.chunk(2), *keys.detach().chunk(2), negatives=negatives).backward()
    torch.testing.assert_close(z.grad, again.grad)


def test_the_momentum_encoder_averages_parameters_and_keeps_statistics_of_its_own() -> None:
    network = model()
    memory = MomentumMemory(network, momentum=0.9)
    before = [p.clone() for p in memory.encoder.parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p))
    memory.update(nn.Sequential(network))  # wrapped, as in DDP
    for ours, old, theirs in zip(memory.encoder.parameters(), before, network.parameters(), strict=True):
        torch.testing.assert_close(ours, 0.9 * old + 0.1 * theirs.detach())
    norm, own = network.encoder.stem.layers[0].normalization, memory.encoder.encoder.stem.layers[0].normalization
    network(torch.rand(4, 3, 16, 16))
    assert int(norm.num_batches_tracked) == 1 and int(own.num_batches_tracked) == 0
    memory.embed(torch.rand(4, 3, 16, 16))
    memory.update(network)
    assert int(own.num_batches_tracked) == 1 and not torch.equal(own.running_mean, norm.running_mean)


def test_a_model_without_head_is_remembered_by_h() -> None:
    network = SimCLRModel(SimCLRConfig(**{**CONFIG.to_diff_dict(), "projection_layers": 0}))
    memory = MomentumMemory(network, size=8)
    keys = memory.embed(torch.rand(4, 3, 16, 16))
    memory.loss(torch.randn_like(keys), keys)
    assert memory.negatives.shape == (4, network.config.hidden_size)


def test_resuming_from_its_state_is_going_on(tmp_path: Path) -> None:
    def run(network: SimCLRModel, memory: MomentumMemory, steps: range) -> list[float]:
        losses = []
        for step in steps:
            pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            z = network(pixels, output_projections=True).projections[-1]
            loss = memory.loss(z, memory.embed(pixels))
            network.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in network.parameters():
                    p.sub_(0.1 * p.grad)
            memory.update(network)
            losses.append(loss.item())
        return losses

    network = model()
    memory = MomentumMemory(network, size=20, momentum=0.5)
    run(network, memory, range(3))
    save_file(network.state_dict(), tmp_path / "model")
    save_file(memory.state_dict(), tmp_path / "memory")
    whole = run(network, memory, range(3, 6))
    resumed = SimCLRModel(CONFIG).train()
    resumed.load_state_dict(load_file(tmp_path / "model"))
    again = MomentumMemory(resumed, size=20, momentum=0.5)
    again.load_state_dict(load_file(tmp_path / "memory"))
    assert again.enqueued == 24
    assert run(resumed, again, range(3, 6)) == whole
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in memory.state_dict().items())


@pytest.mark.parametrize("wrong", [{"size": 0}, {"momentum": 1.0}, {"momentum": -0.5}, {"momentum": float("nan")}])
def test_bad_arguments_are_named(wrong: dict[str, float]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MomentumMemory(model(), **wrong)
