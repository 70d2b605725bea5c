"""What `test_distributed.py` runs in several gloo processes and compares with one."""

import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_hub import SimCLRConfig, SimCLRModel
from simclr_hub.training.distributed import (
    GlobalBatchNorm,
    gather,
    global_multi_view_loss,
    global_nt_xent_loss,
    synchronize_batch_norm,
    use_biased_moving_variance,
)
from simclr_hub.training.equality import check_equality
from simclr_hub.training.large_batch import MomentumMemory, cached_backward

IMAGES = 6  # of a process
CONFIG = SimCLRConfig(
    depths=(1, 1), layer_type="basic", width_multiplier=0.125, stem_type="small", projection_dim=8, image_size=16
)


def model() -> SimCLRModel:
    """The same on every process, without a scale at 0."""
    torch.manual_seed(0)
    result = SimCLRModel(CONFIG).double().train()
    for p in result.parameters():
        nn.init.uniform_(p, -0.5, 0.5)
    return result


def views(step: int, world: int) -> Tensor:
    """Of the global batch, (2, W x N, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(step)
    return torch.rand(2, world * IMAGES, 3, 16, 16, generator=generator, dtype=torch.float64)


def embed(network: nn.Module, pixels: Tensor) -> Tensor:
    return network(pixels, output_projections=True).projections[-1]


def mine(rank: int, world: int, step: int) -> Tensor:
    """This process's share of the views, (2N, 3, 16, 16)."""
    return views(step, world)[:, rank * IMAGES : (rank + 1) * IMAGES].flatten(0, 1)


def gathered(rank: int) -> dict[str, object]:
    x = torch.full((2, 3), float(rank), requires_grad=True)
    everything = gather(x)
    # Each process weighs every row otherwise: x's gradient must hold what all of them say.
    weights = torch.arange(1.0, 1 + len(everything))[:, None] * 10**rank
    (everything * weights).sum().backward()
    return {"gathered": everything.detach(), "gather_gradient": x.grad}


def trained(rank: int, world: int) -> dict[str, object]:
    """Three steps as the Trainer takes them."""
    network = synchronize_batch_norm(model(), torch.device("cpu"))
    use_biased_moving_variance(network)
    assert sum(isinstance(m, GlobalBatchNorm) for m in network.modules()) > 5
    parallel = DistributedDataParallel(network, find_unused_parameters=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(3):
        z = embed(parallel, mine(rank, world, step))
        loss = global_nt_xent_loss(*z.chunk(2), 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network.eval()
    return {"losses": losses, "trained": network.state_dict(), "h": network(views(9, 1)[0]).pooler_output.detach()}


def several(rank: int) -> dict[str, object]:
    """Four views of each image, decoupled: this process's loss, and the gradient of its z."""
    z = several_views()[:, rank * IMAGES : (rank + 1) * IMAGES].clone().requires_grad_()
    loss = global_multi_view_loss(z, 0.3, decoupled=True)
    loss.backward()
    return {"several_loss": loss.item(), "several": z.grad}


def several_views() -> Tensor:
    """The z of 12 images in 4 views, (4, 12, 5)."""
    return torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cached(rank: int, world: int) -> dict[str, object]:
    """The gradient of one batch in pieces of 5 views, BatchNorm frozen; and how often DDP averaged."""
    network = model().eval()
    parallel = DistributedDataParallel(network)
    averaged = []

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        averaged.append(1)
        return dist.distributed_c10d._get_default_group().allreduce([bucket.buffer()]).get_future().then(
            lambda f: f.value()[0] / world
        )  # fmt: skip

    parallel.register_comm_hook(None, count)
    entered = []

    @contextmanager
    def no_sync():  # type: ignore[no-untyped-def]
        entered.append(1)
        with parallel.no_sync():
            yield

    loss = cached_backward(
        parallel,
        mine(rank, world, 0).split(5),
        lambda pixels: embed(parallel, pixels),
        lambda z: global_nt_xent_loss(*z.chunk(2), 0.5),
        no_sync=no_sync,
    )
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return {"cached_loss": loss.item(), "cached": gradients, "averaged": len(averaged), "unsynced": len(entered)}


def remembered(rank: int, world: int) -> dict[str, object]:
    network = synchronize_batch_norm(model(), torch.device("cpu"))
    memory = MomentumMemory(network, size=40, momentum=0.9).double()
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        pixels = mine(rank, world, step)
        loss = memory.loss(embed(parallel, pixels), memory.embed(pixels), 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.update(parallel)
        losses.append(loss.item())
    return {"memory_losses": losses, "memory": memory.state_dict()}


def run(rank: int, world: int, folder: Path) -> None:
    """The life of a process; what it found is in the folder's file of its rank."""
    warnings.simplefilter("error")
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=world)
    results = {
        "equality": check_equality(),
        **gathered(rank),
        **trained(rank, world),
        **several(rank),
        **cached(rank, world),
        **remembered(rank, world),
    }
    torch.save(results, folder / f"{rank}")
    dist.destroy_process_group()
