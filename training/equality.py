"""Proof, on the machines of a run to come, that its processes train as one process with the whole batch would.

Loss curves do not show it: a gather without gradient or BatchNorm within each process also falls.
"""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import RecipeError
from simclr_hub.modeling_simclr import SimCLRModel

from .distributed import global_nt_xent_loss, synchronize_batch_norm
from .losses import nt_xent_loss


@dataclass(frozen=True)
class EqualityReport:
    """What `check_equality` found: largest differences relative to the largest value, of the worst process.

    Args:
        processes: how many took part.
        backend: of torch.distributed: nccl or gloo.
        device: the first process's.
        loss_error: of the mean of the processes' losses.
        gradient_error: of the parameters' gradients after DDP.
        statistics_error: of BatchNorm's moving statistics.
    """

    processes: int
    backend: str
    device: str
    loss_error: float
    gradient_error: float
    statistics_error: float

    @property
    def equal(self) -> bool:
        """Tell whether all is equal up to float64's rounding (NaN is not)."""
        return all(e < 1e-9 for e in (self.loss_error, self.gradient_error, self.statistics_error))


def check_equality(images: int = 8) -> EqualityReport:
    """Compare this job's processes with one process that holds the whole batch.

    A tiny SimCLR in float64 and in training mode: once whole in every process, once split over them through
    `synchronize_batch_norm`, DDP and `global_nt_xent_loss`. Every process calls it, and gets the report.

    Args:
        images: of a process.

    Raises:
        RecipeError: not started by torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            "the check compares several processes: start it as the run to come, such as "
            "`torchrun --nproc-per-node=2 --no-python simclr-hub doctor --distributed`"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        return _compare(images, device)
    finally:
        if started:
            dist.destroy_process_group()


def _compare(images: int, device: torch.device) -> EqualityReport:
    world, rank = dist.get_world_size(), dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    whole: nn.Module = SimCLRModel(
        SimCLRConfig(
            depths=(1, 1),
            layer_type="basic",
            width_multiplier=0.125,
            stem_type="small",
            projection_dim=16,
            image_size=16,
        )
    )
    with torch.no_grad():  # no scale at 0, behind which nothing would have a gradient to compare
        for parameter in whole.parameters():
            parameter.copy_(torch.empty_like(parameter).uniform_(-0.5, 0.5, generator=generator))
    whole = whole.double().to(device).train()
    split = synchronize_batch_norm(copy.deepcopy(whole), device)
    parallel = DistributedDataParallel(split)
    views = torch.rand(2, world * images, 3, 16, 16, generator=generator, dtype=torch.float64).to(device)

    expected = nt_xent_loss(*_embed(whole, views), temperature=0.5)
    expected.backward()
    loss = global_nt_xent_loss(*_embed(parallel, views[:, rank * images : (rank + 1) * images]), temperature=0.5)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    errors = torch.tensor(
        [
            _difference([mean / world], [expected.detach()]),
            _difference([p.grad for p in split.parameters()], [p.grad for p in whole.parameters()]),
            _difference(list(split.buffers()), list(whole.buffers())),
        ],
        device=device,
    )
    dist.all_reduce(errors, dist.ReduceOp.MAX)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return EqualityReport(world, dist.get_backend(), name, *errors.tolist())


def _embed(model: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
    """Embed views (2, N, 3, H, W) in one pass; return z_a and z_b, each (N, d)."""
    z_a, z_b = model(views.flatten(0, 1), output_projections=True).projections[-1].chunk(2)
    return z_a, z_b


def _difference(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> float:
    """Return the largest difference, relative to each tensor's largest value; infinite for missing or NaN."""
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True):
        error = math.nan if x is None or y is None else float((x - y).abs().max() / y.abs().max())
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst
