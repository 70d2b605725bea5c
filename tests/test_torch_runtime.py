import pytest
import torch
from tiny import randomized, tiny_config
from torch import nn

from simclr_hub import SimCLRModel
from simclr_hub.torch_runtime import Layer, fast_copy


@pytest.mark.parametrize("changes", [{}, {"sk_ratio": 0.0625}, {"projection_layers": 3}])
def test_the_fast_copy_drifts_by_less_than_a_millionth(changes):
    torch.manual_seed(0)
    model = randomized(SimCLRModel(tiny_config(**changes))).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(4, 3, 64, 64)
    fast = fast_copy(model, torch.device("cpu"), torch.float32)
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in fast.modules())
    with torch.inference_mode():
        out = model(x, output_projections=True)
        for i, expected in enumerate((out.pooler_output, *out.projections)):
            assert (expected - Layer(fast, i)(x)).abs().max() / expected.abs().max() < 2e-6
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], v) for k, v in after.items())
