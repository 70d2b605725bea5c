"""One batch over many processes: gather with gradient, and BatchNorm over all of them; `equality.py` checks it.

N images on each of W processes train as N x W images on one: the same loss and the same gradients. Each process's loss
is the mean over its own rows, against the embeddings of all. The gather's backward pass sums over the processes what
their losses say about an embedding, and DDP averages the parameters' gradients: together that is the gradient of the
mean over all rows, without a further factor. A gather without gradient loses the part that comes through the
negatives, and a loss within each process only learns to tell apart its own N images.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .losses import multi_view_loss, multi_view_loss_to_keys


def world_size() -> int:
    """Return how many processes train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of every process's x, without gradient."""
    return _sum(x) / world_size() if world_size() > 1 else x


def gather(x: Tensor) -> Tensor:
    """Concatenate every process's x (N, ...) in the order of ranks to (W x N, ...), with gradient.

    All processes must give the same shape and dtype. Without torch.distributed it is x itself.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def gather_views(z: Tensor) -> tuple[Tensor, int]:
    """Gather views (k, N, d) to (k, W x N, d), with gradient; also return where this process's images begin."""
    if world_size() == 1:
        return z, 0
    k, n, d = z.shape
    views = gather(z).view(-1, k, n, d)  # (W, k, N, d), in one collective
    return views.transpose(0, 1).reshape(k, -1, d), n * dist.get_rank()


def global_nt_xent_loss(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float = 0.1,
    *,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute `nt_xent_loss` of this process's rows against the embeddings of all; see `global_multi_view_loss`."""
    z = torch.stack([z_a, z_b])
    return global_multi_view_loss(z, temperature, negatives=negatives, chunk_size=chunk_size)


def global_multi_view_loss(
    z: Tensor,
    temperature: float = 0.1,
    *,
    decoupled: bool = False,
    negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Compute `multi_view_loss` of this process's rows against the embeddings of all processes.

    Args:
        z: (k, N, d), this process's views; k and N must be the same on all.
        temperature: divides the cosine similarities; > 0.
        decoupled: leave an image's other views out of the denominator.
        negatives: (M, d), further negatives, the same on every process.
        chunk_size: as in `nt_xent_loss`.

    Returns:
        Scalar, the mean over this process's kN rows. The mean over processes is the loss of the global batch, and
        DDP's mean of the gradients is its gradient: do not scale it by the number of processes.

    Raises:
        ValueError: as `nt_xent_loss`.
    """
    settings: Any = {"decoupled": decoupled, "negatives": negatives, "chunk_size": chunk_size}
    if world_size() == 1:
        return multi_view_loss(z, temperature, **settings)
    z = z.to(torch.promote_types(z.dtype, torch.float32))  # gradients are summed over processes in it
    keys, offset = gather_views(z)
    return multi_view_loss_to_keys(z, keys, temperature, offset=offset, **settings)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.new_empty((world_size() * len(x), *x.shape[1:]))
        dist.all_gather(list(out.chunk(world_size())), x.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every process's loss depends on this process's x.
        total = _sum(grad)
        return total.chunk(world_size())[dist.get_rank()]


class _AllReduce(torch.autograd.Function):
    """Sum over the processes; so is its gradient. torch's SyncBatchNorm, which has one, does not run on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad)


def _sum(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes on any device, in plain operations; every N must be the same."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"BatchNorm needs (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) by the global batch's statistics in training, else by the moving ones."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        dims = [0, *range(2, input.ndim)]
        shape = (1, -1, *(1 for _ in dims[1:]))
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        n = world_size() * x.numel() // x.shape[1]
        mean = _AllReduce.apply(x.sum(dims)) / n  # (C,)
        x = x - mean.view(shape)
        variance = _AllReduce.apply(x.square().sum(dims)) / n
        if self.track_running_stats:
            self._move_statistics(mean.detach(), variance.detach() * (n / (n - 1)))
        x = x * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            x = x * self.weight.view(shape)
        if self.bias is not None:
            x = x + self.bias.view(shape)
        return x.to(input.dtype)

    def _move_statistics(self, mean: Tensor, variance: Tensor) -> None:
        count: Any = self.num_batches_tracked
        count.add_(1)
        weight = 1 / count.item() if self.momentum is None else self.momentum
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            if buffer is not None:
                buffer.lerp_(value.to(buffer.dtype), weight)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of a model take its statistics over all processes, as the official code's global BatchNorm.

    Call it before DDP and before the optimiser: on CUDA torch's SyncBatchNorm takes the layers' places (with the same
    parameters), elsewhere the layers become `GlobalBatchNorm`. One process needs neither.

    Args:
        model: changed in place.
        device: where it will train.

    Returns:
        The model, to go on with.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = GlobalBatchNorm  # parameters, statistics and hooks stay
    return model


def use_biased_moving_variance(model: nn.Module) -> None:
    """Make every BatchNorm move its variance towards the batch's own (1/n), as the official code's global BatchNorm.

    PyTorch moves it towards n/(n-1) times that, n being batch x height x width of all processes together. No gradient
    changes, only what evaluation divides by, and that by 1/n: 0.4 % in g at 2N = 256, less in f. Call it after
    `synchronize_batch_norm`, which may replace the layers.

    Raises:
        ValueError: a BatchNorm with a cumulative average (momentum None), which the official code does not have.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            if module.momentum is None:
                raise ValueError(f"{name}.momentum=None: a cumulative average has no official counterpart")
            if not hasattr(module, "_variance_before"):  # once
                norm: Any = module
                norm._variance_before = None
                norm.register_forward_pre_hook(_remember_variance)
                norm.register_forward_hook(_bias_variance)


def _remember_variance(module: Any, inputs: tuple[Tensor, ...]) -> None:
    module._variance_before = module.running_var.clone() if module.training and module.track_running_stats else None


def _bias_variance(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    before, module._variance_before = module._variance_before, None
    if before is not None:
        synchronized = isinstance(module, (GlobalBatchNorm, nn.SyncBatchNorm))
        n = inputs[0].numel() // inputs[0].shape[1] * (world_size() if synchronized else 1)
        # after = (1 - m) before + m v n / (n - 1); this leaves (1 - m) before + m v.
        # Through `data`: autograd counts writes to what a forward pass saved, which backward does not read.
        module.running_var.data.lerp_(before.mul_(1 - module.momentum), 1 / n)
