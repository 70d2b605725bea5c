import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_hub.training import losses
from simclr_hub.training.losses import nt_xent_loss

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
    expected = nt_xent_loss(z_a, z_b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent_loss(z_a, z_b)
        chunked = nt_xent_loss(z_a, z_b, chunk_size=3)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(chunked, z_a), torch.autograd.grad(expected, z_a))
    assert nt_xent_loss(z_a.bfloat16(), z_b.bfloat16()).dtype == torch.float32


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


def test_the_example_in_the_docstring() -> None:
    results = doctest.testmod(losses)
    assert results.attempted and not results.failed
