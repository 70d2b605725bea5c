import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_hub.training import losses
from simclr_hub.training.losses import (
    dcl_loss,
    multi_view_loss,
    multi_view_loss_to_keys,
    nt_xent_loss,
    nt_xent_loss_to_keys,
)

OFFICIAL = np.load(Path(__file__).parents[1] / "data" / "official" / "nt_xent.npz")


def naive_loss(z_a: Tensor, z_b: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    """Equation 1 of the paper, one pair at a time."""
    z = [v / v.norm() for v in torch.cat([z_a, z_b])]
    others = [] if negatives is None else [v / v.norm() for v in negatives]
    n, total = len(z_a), torch.zeros(())
    for i in range(2 * n):
        keys = [z[k] for k in range(2 * n) if k != i] + others
        denominator = sum((z[i] @ k / temperature).exp() for k in keys)
        total = total - ((z[i] @ z[(i + n) % (2 * n)] / temperature).exp() / denominator).log()
    return total / (2 * n)


def naive_multi_view(
    z: Tensor, temperature: float, decoupled: bool = False, negatives: Tensor | None = None
) -> Tensor:
    """Mean over rows and over their positives of -log(positive / denominator), one pair at a time."""
    k, n, _ = z.shape
    unit = z / z.norm(dim=2, keepdim=True)
    others = [] if negatives is None else [v / v.norm() for v in negatives]
    total = torch.zeros((), dtype=z.dtype)
    for v in range(k):
        for i in range(n):
            left_out = [(u, i) for u in range(k)] if decoupled else [(v, i)]
            keys = [unit[u, j] for u in range(k) for j in range(n) if (u, j) not in left_out] + others
            denominator = sum((unit[v, i] @ key / temperature).exp() for key in keys)
            for u in set(range(k)) - {v}:
                total = total - ((unit[v, i] @ unit[u, i] / temperature).exp() / denominator).log() / (k - 1)
    return total / (k * n)


def views(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))
    return z[0].clone().requires_grad_(), z[1].clone().requires_grad_()


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("case", range(3))
def test_equals_the_official_loss_and_gradient(case: int, chunk_size: int | None) -> None:
    z = torch.tensor(OFFICIAL[f"z_{case}"], requires_grad=True)  # view a stacked on view b
    loss = nt_xent_loss(*z.chunk(2), temperature=float(OFFICIAL[f"temperature_{case}"]), chunk_size=chunk_size)
    official = 2 * loss  # which sums the means over both views
    official.backward()
    assert official.item() == pytest.approx(OFFICIAL[f"loss_{case}"], rel=1e-6)
    expected = torch.tensor(OFFICIAL[f"grad_{case}"])
    torch.testing.assert_close(z.grad, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_equals_a_naive_loop_also_with_extra_negatives() -> None:
    z_a, z_b = views(6, 4)
    extra = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for negatives in (None, extra):
        loss = nt_xent_loss(z_a, z_b, 0.3, negatives=negatives)
        expected = naive_loss(z_a, z_b, 0.3, negatives)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(loss, (z_a, z_b)), torch.autograd.grad(expected, (z_a, z_b)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_many_tiles_equal_float64_to_float32_rounding(temperature: float) -> None:
    z_a, z_b = views(300, 32)
    loss = nt_xent_loss(z_a, z_b, temperature, chunk_size=128)
    wide_a, wide_b = z_a.detach().double().requires_grad_(), z_b.detach().double().requires_grad_()
    z = torch.nn.functional.normalize(torch.cat([wide_a, wide_b]))
    logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(600).roll(300))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for ours, theirs in ((z_a.grad, wide_a.grad), (z_b.grad, wide_b.grad)):
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() < 3e-6 * theirs.abs().max() / min(temperature * 10, 1)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.024, 0.025, 0.1])
def test_a_low_temperature_neither_underflows_nor_overflows(temperature: float) -> None:
    for z_a, z_b in (torch.eye(8).chunk(2), (torch.eye(4), -torch.eye(4))):  # cosines of 0; of 0 and -1
        z_a = z_a.clone().requires_grad_()
        loss = nt_xent_loss(z_a, z_b, temperature)
        z = torch.cat([z_a, z_b]).detach().double()
        logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
        expected = torch.nn.functional.cross_entropy(logits, torch.arange(8).roll(4))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward()
        assert z_a.grad is not None and z_a.grad.isfinite().all()


def test_the_floor_on_the_norm_is_the_official_one() -> None:
    z_a, z_b = views(4, 3)
    z_a, z_b = 1e-8 * z_a.detach(), 1e-8 * z_b.detach()  # norms below 1e-6
    z = 1e6 * torch.cat([z_a, z_b]).double()
    logits = (z @ z.T / 0.001).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8).roll(4))
    assert nt_xent_loss(z_a, z_b, 0.001).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.02, 0.5])  # one on each side of where the symmetric tiles would underflow
@pytest.mark.parametrize("extra", [0, 4])
def test_gradcheck_in_float64(temperature: float, extra: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4, 3), *([(extra, 3)] if extra else [])]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]

    def loss(z_a: Tensor, z_b: Tensor, negatives: Tensor | None = None) -> Tensor:
        return nt_xent_loss(z_a, z_b, temperature, negatives=negatives, chunk_size=3)

    assert loss(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, inputs)


def test_gradcheck_of_keys_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (3, 4), (7, 4), (7, 4), (5, 4))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]

    def loss(z_a: Tensor, z_b: Tensor, keys_a: Tensor, keys_b: Tensor, negatives: Tensor) -> Tensor:
        return nt_xent_loss_to_keys(z_a, z_b, keys_a, keys_b, 0.5, offset=2, negatives=negatives, chunk_size=4)

    assert torch.autograd.gradcheck(loss, inputs)


def naive_loss_to_keys(z: list[Tensor], keys: list[Tensor], offset: int, others: Tensor, temperature: float) -> Tensor:
    """One row at a time: z and keys hold two views each."""
    losses = []
    for view in (0, 1):
        for i, row in enumerate(z[view]):
            positive = keys[1 - view][offset + i]
            same = [k for j, k in enumerate(keys[view]) if j != offset + i]  # all but the same view of the same image
            logits = torch.stack(
                [row @ k / row.norm() / k.norm() for k in [positive, *keys[1 - view], *same, *others]]
            )
            # The positive stands first and once more among keys[1 - view]: the denominator counts it once.
            losses.append((logits[1:] / temperature).logsumexp(0) - logits[0] / temperature)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_keys_equal_a_naive_loop(chunk_size: int | None) -> None:
    z_a, z_b = views(3, 4)
    keys_a, keys_b = views(6, 4, seed=1)
    others = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    for offset in (0, 3):
        loss = nt_xent_loss_to_keys(
            z_a, z_b, keys_a, keys_b, 0.3, offset=offset, negatives=others, chunk_size=chunk_size
        )
        expected = naive_loss_to_keys([z_a, z_b], [keys_a, keys_b], offset, others, 0.3)
        torch.testing.assert_close(loss, expected)
        inputs = (z_a, z_b, keys_a, keys_b)
        torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))


def test_parts_of_a_batch_against_all_of_it_are_the_whole() -> None:
    z_a, z_b = views(8, 5)
    whole = nt_xent_loss(z_a, z_b)
    parts = [nt_xent_loss_to_keys(z_a[i : i + 2], z_b[i : i + 2], z_a, z_b, offset=i) for i in (0, 2, 4, 6)]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, (z_a, z_b)), torch.autograd.grad(whole, (z_a, z_b)))


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return result


@pytest.mark.parametrize("form", ["batch", "keys"])
def test_the_matrix_of_similarities_is_never_held(form: str) -> None:
    z_a, z_b = views(256, 8)
    with LargestTensor() as seen:
        if form == "batch":
            loss = nt_xent_loss(z_a, z_b, negatives=torch.ones(100, 8), chunk_size=64)
        else:
            loss = nt_xent_loss_to_keys(z_a, z_b, z_a, z_b, chunk_size=64)
        loss.backward()
    assert 64 * 64 <= seen.numel <= 2 * 256 * 8  # a tile, or z itself; the whole would be 512 * 512


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 13, 100])
@pytest.mark.parametrize("extra", [0, 7])
def test_chunks_change_neither_value_nor_gradient(chunk_size: int, extra: int) -> None:
    z_a, z_b = views(8, 5)
    negatives = (
        torch.randn(extra, 5, generator=torch.Generator().manual_seed(1), requires_grad=True) if extra else None
    )
    inputs = [z_a, z_b] if negatives is None else [z_a, z_b, negatives]
    dense = nt_xent_loss(z_a, z_b, negatives=negatives)
    chunked = nt_xent_loss(z_a, z_b, negatives=negatives, chunk_size=chunk_size)
    torch.testing.assert_close(chunked, dense)
    torch.testing.assert_close(torch.autograd.grad(chunked, inputs), torch.autograd.grad(dense, inputs))


def test_autocast_and_half_precision_inputs_give_float32() -> None:
    z_a, z_b = views(8, 5)
    keys = [k.detach() for k in views(8, 5, seed=1)]
    forms = (
        lambda: nt_xent_loss(z_a, z_b, negatives=keys[0], chunk_size=3),
        lambda: nt_xent_loss_to_keys(z_a, z_b, *keys, chunk_size=3),
    )
    for form in forms:
        expected = form()
        gradients = torch.autograd.grad(expected, (z_a, z_b))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = form()
            assert loss.dtype == torch.float32 and torch.equal(loss, expected)
            for ours, theirs in zip(torch.autograd.grad(loss, (z_a, z_b)), gradients, strict=True):
                assert torch.equal(ours, theirs)  # also when the backward pass runs under autocast
    half = z_a.detach().bfloat16().requires_grad_()
    loss = nt_xent_loss(half, z_b.bfloat16())
    assert loss.dtype == torch.float32
    loss.backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16


def test_zero_vectors_have_a_finite_loss_and_gradient() -> None:
    z = torch.zeros(4, 3, requires_grad=True)
    loss = nt_xent_loss(z, z)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7))  # all similarities are 0
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"z_b": torch.ones(3, 2)}, r"\(4, 2\), \(3, 2\)"),
        ({"z_a": torch.ones(1, 2), "z_b": torch.ones(1, 2)}, "N >= 2"),
        ({"z_a": torch.ones(4), "z_b": torch.ones(4)}, r"\(4,\)"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"negatives": torch.ones(5, 3)}, r"must be \(M, 2\), got \(5, 3\)"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], named: str) -> None:
    arguments = {"z_a": torch.ones(4, 2), "z_b": torch.ones(4, 2), **change}
    with pytest.raises(ValueError, match=named):
        nt_xent_loss(**arguments)


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("temperature", [0.02, 0.5])  # one on each side of where the symmetric tiles would underflow
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_several_views_equal_a_naive_loop(
    k: int, decoupled: bool, extra: int, temperature: float, chunk_size: int | None
) -> None:
    generator = torch.Generator().manual_seed(k)
    z = torch.randn(k, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    negatives = torch.randn(extra, 4, generator=generator, dtype=torch.float64) if extra else None
    expected = naive_multi_view(z, temperature, decoupled, negatives)
    settings = {"decoupled": decoupled, "negatives": negatives, "chunk_size": chunk_size}
    for loss in (
        multi_view_loss(z, temperature, **settings),
        multi_view_loss_to_keys(z, z, temperature, **settings),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in (loss, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("decoupled", [False, True])
def test_several_views_in_parts_are_the_mean_of_the_whole(decoupled: bool) -> None:
    z = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [multi_view_loss_to_keys(z[:, i : i + 2], z, decoupled=decoupled, offset=i) for i in (0, 2, 4, 6)]
    torch.testing.assert_close(torch.stack(parts).mean(), multi_view_loss(z, decoupled=decoupled))


def test_two_views_are_nt_xent_and_dcl() -> None:
    z_a, z_b = views(6, 4)
    z = torch.stack([z_a, z_b])
    assert torch.equal(nt_xent_loss(z_a, z_b, 0.2), multi_view_loss(z, 0.2))
    decoupled = dcl_loss(z_a, z_b, 0.2)
    torch.testing.assert_close(decoupled, naive_multi_view(z, 0.2, decoupled=True))
    # log(sum over all) = log(positive + the rest): both losses by one formula.
    positive = torch.nn.functional.cosine_similarity(z_a, z_b) / 0.2
    unit = torch.nn.functional.normalize(torch.cat([z_a, z_b]))
    logits = (unit @ unit.T / 0.2).fill_diagonal_(-math.inf)
    rest = logits.exp().sum(1) - positive.exp().repeat(2)
    torch.testing.assert_close(decoupled, (rest.log() - positive.repeat(2)).mean())


def test_views_that_are_none_are_named() -> None:
    with pytest.raises(ValueError, match=r"at least 2 views and N >= 2, got \(1, 4, 2\)"):
        multi_view_loss(torch.ones(1, 4, 2))
    with pytest.raises(ValueError, match=r"got \(4, 2\)"):
        multi_view_loss(torch.ones(4, 2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"keys_b": torch.ones(5, 2)}, r"\(6, 2\), \(5, 2\)"),
        ({"keys_a": torch.ones(6, 3), "keys_b": torch.ones(6, 3)}, r"must be \(2, M, 2\)"),
        ({"offset": 3}, r"offset=3 must be within \[0, 2\]: 4 rows, 6 keys"),
        ({"offset": -1}, "offset=-1"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_bad_keys_are_named(change: dict[str, object], named: str) -> None:
    z, keys = torch.ones(4, 2), torch.ones(6, 2)
    with pytest.raises(ValueError, match=named):
        nt_xent_loss_to_keys(**{"z_a": z, "z_b": z, "keys_a": keys, "keys_b": keys, **change})


def test_the_example_in_the_docstring() -> None:
    results = doctest.testmod(losses)
    assert results.attempted and not results.failed
