import pytest
import torch
from torch import Tensor, nn

from simclr_hub import SimCLRConfig, SimCLRModel
from simclr_hub.training.distributed import use_biased_moving_variance
from simclr_hub.training.large_batch import cached_backward
from simclr_hub.training.losses import nt_xent_loss

CONFIG = SimCLRConfig(
    depths=(1, 1), layer_type="basic", width_multiplier=0.125, stem_type="small", projection_dim=8, image_size=16
)


def model(**changes: object) -> SimCLRModel:
    torch.manual_seed(0)
    result = SimCLRModel(SimCLRConfig(**{**CONFIG.to_diff_dict(), **changes})).double()
    for p in result.parameters():
        nn.init.uniform_(p, -0.5, 0.5)  # no scale at 0
    return result.train()


def embed(network: nn.Module, pixels: Tensor) -> Tensor:
    return network(pixels, output_projections=True).projections[-1]


def loss_of(z: Tensor) -> Tensor:
    return nt_xent_loss(*z.chunk(2), 0.5)


PIXELS = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert len(found) == len(list(network.parameters()))
    return found


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 6, 12])
def test_with_frozen_batch_norm_it_is_the_whole_batchs_gradient(size: int) -> None:
    whole, pieces = model().eval(), model().eval()
    loss = loss_of(embed(whole, PIXELS))
    loss.backward()
    cached = cached_backward(pieces, PIXELS.split(size), lambda x: embed(pieces, x), loss_of)
    torch.testing.assert_close(cached, loss.detach())
    assert not cached.requires_grad
    assert_equal(gradients(pieces), gradients(whole))


def test_in_training_it_is_the_gradient_of_the_batch_embedded_in_pieces() -> None:
    held, cached = model(), model()
    for network in (held, cached):
        use_biased_moving_variance(network)
    loss = loss_of(torch.cat([embed(held, x) for x in PIXELS.split(4)]))  # all graphs at once
    loss.backward()
    value = cached_backward(cached, PIXELS.split(4), lambda x: embed(cached, x), loss_of)
    torch.testing.assert_close(value, loss.detach())
    assert_equal(gradients(cached), gradients(held))
    # Each piece moved the statistics once, not again in the second pass.
    for name, buffer in held.named_buffers():
        torch.testing.assert_close(dict(cached.named_buffers())[name], buffer, rtol=0, atol=0)
    assert int(cached.encoder.stem.layers[0].normalization.num_batches_tracked) == 3
    cached(PIXELS)  # which moves on in the next step
    assert int(cached.encoder.stem.layers[0].normalization.num_batches_tracked) == 4
    whole = model()
    loss_of(embed(whole, PIXELS)).backward()
    name = "projection.layers.0.dense.weight"
    assert not torch.allclose(gradients(cached)[name], gradients(whole)[name])  # as the docstring says


def test_the_second_pass_draws_what_the_first_drew() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    torch.manual_seed(1)
    loss = loss_of(torch.cat([network(piece) for piece in x.split(3)]))
    drawn = torch.rand(1)
    expected = torch.autograd.grad(loss, tuple(network.parameters()))
    torch.manual_seed(1)
    cached_backward(network, x.split(3), network, loss_of)
    assert torch.equal(torch.rand(1), drawn)  # and leaves the generator where one pass does
    torch.testing.assert_close(tuple(p.grad for p in network.parameters()), expected)


def test_gradients_accumulate_and_backward_may_scale() -> None:
    first, second = model().eval(), model().eval()
    cached_backward(first, PIXELS.split(4), lambda x: embed(first, x), loss_of)
    for _ in range(2):
        cached_backward(
            second, PIXELS.split(4), lambda x: embed(second, x), loss_of, backward=lambda x: (x / 2).backward()
        )
    assert_equal(gradients(second), gradients(first))


def test_under_autocast_it_is_as_exact_as_with_all_graphs() -> None:
    exact, held, cached = model(), model().float(), model().float()

    def embed_half(network: nn.Module, pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return embed(network, pixels.float())

    def error(network: nn.Module) -> float:
        pairs = zip(network.parameters(), exact.parameters(), strict=True)
        return float(torch.stack([(p.grad - q.grad).norm() / q.grad.norm() for p, q in pairs]).mean())

    loss_of(torch.cat([embed(exact, x) for x in PIXELS.split(6)])).backward()
    parts = [embed_half(held, x) for x in PIXELS.split(6)]
    assert parts[0].dtype == torch.bfloat16
    loss = loss_of(torch.cat(parts))
    loss.backward()
    value = cached_backward(cached, PIXELS.split(6), lambda x: embed_half(cached, x), loss_of)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss.detach(), rtol=1e-3, atol=0)
    assert 0 < error(cached) < 1.2 * error(held) < 0.3
    inside = model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around both passes
        cached_backward(inside, PIXELS.split(6), lambda x: embed(inside, x.float()), loss_of)
    assert error(inside) < 1.2 * error(held)


def test_one_pieces_activations_are_held_at_a_time() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            nonlocal alive, most
            if torch.is_grad_enabled() or x.requires_grad:
                alive += 1
                most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            nonlocal alive
            alive -= 1
            return grad

    x = torch.randn(8, 4, dtype=torch.float64)
    cached_backward(network, x.split(2), lambda piece: Counted.apply(network(piece)), loss_of)
    assert (most, alive) == (1, 0)


def test_no_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="pieces is empty"):
        cached_backward(nn.Linear(1, 1), [], nn.Linear(1, 1), loss_of)
