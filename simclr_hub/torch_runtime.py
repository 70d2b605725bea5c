"""The fast path of a model for inference: BatchNorm folded, channels last, chosen precision; and one layer of it.

Drift from the eager float32 model: below 1e-6 relative in float32 (tests/test_fast.py); other precisions state theirs.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .modeling_simclr import SimCLRConvLayer, SimCLRModel, SimCLRProjectionLayer


def fast_copy(model: SimCLRModel, device: torch.device, dtype: torch.dtype) -> SimCLRModel:
    """A copy of `model` for inference on `device`; the model itself is left as it is."""
    fast: SimCLRModel = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in fast.modules():
        if isinstance(layer, SimCLRConvLayer):
            layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.normalization)
        elif isinstance(layer, SimCLRProjectionLayer):
            if layer.normalization.bias is None:  # the last one's
                zeros = torch.zeros_like(layer.normalization.weight)  # type: ignore[unreachable]
                layer.normalization.bias = nn.Parameter(zeros)
            layer.dense = fuse_linear_bn_eval(layer.dense, layer.normalization)
        else:
            continue
        layer.normalization = nn.Identity()  # type: ignore[assignment]
    fast.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-arg]
    return fast


class Layer(nn.Module):
    """One layer of a model: pixel values (B, 3, H, W) to vectors (B, D).

    Args:
        model: the model.
        projection: 0 for h, j for g's layer j.
        stage3: h and, beside it, stage 3's map averaged.
    """

    def __init__(self, model: SimCLRModel, projection: int, *, stage3: bool = False):
        super().__init__()
        self.model, self.projection, self.stage3 = model, projection, stage3

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D)."""
        output = self.model(
            pixels, output_projections=self.projection > 0, output_hidden_states=self.stage3, return_dict=True
        )
        if self.stage3:
            return torch.cat([output.pooler_output, output.hidden_states[3].mean((2, 3))], 1)
        vectors: Tensor = output.projections[self.projection - 1] if self.projection else output.pooler_output
        return vectors
