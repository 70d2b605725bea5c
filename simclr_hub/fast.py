"""The fast path of a model for inference: BatchNorm folded into convolutions, channels last, chosen precision.

Drift from the eager float32 model: below 1e-6 relative in float32 (tests/test_fast.py); other precisions state theirs.
"""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .modeling_simclr import SimCLRConvLayer, SimCLRModel


def fast_copy(model: SimCLRModel, device: torch.device, dtype: torch.dtype) -> SimCLRModel:
    """A copy of `model` for inference on `device`; the model itself is left as it is."""
    fast: SimCLRModel = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in fast.modules():
        if isinstance(layer, SimCLRConvLayer):
            layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.normalization)
            layer.normalization = nn.Identity()  # type: ignore[assignment]
    fast.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-arg]
    return fast
