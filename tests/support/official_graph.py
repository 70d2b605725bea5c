"""The official inference graph once more, from its formulas and independent of the library, with TensorFlow's names.

Slow, in float64, on any device ("meta" gives the names and shapes alone). Variables that it is not given it draws at
random. `test_official.py` holds it against numbers of the official code; then it speaks for what those do not cover.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


class OfficialGraph:
    """Call with images (B, 3, H, W) in [0, 1] to get endpoint -> tensor; `shapes` and `drawn` hold the variables."""

    def __init__(self, config, variables=None, num_classes=0, device="cpu"):
        self.config, self.num_classes, self.device = config, num_classes, device
        self.variables = variables
        self.shapes = {}
        self.drawn = {} if variables is None else variables
        self.random = np.random.default_rng(0)
        self.convs = self.norms = 0

    def variable(self, name, shape, low=0.0, high=1.0, normal=False):
        self.shapes[name] = tuple(shape)
        if self.device == "meta":
            return torch.empty(shape, device="meta", dtype=torch.float64)
        if name not in self.drawn:
            if self.variables is not None:
                raise KeyError(name)
            std = math.prod(shape[:-1]) ** -0.5
            value = self.random.normal(0, std, shape) if normal else self.random.uniform(low, high, shape)
            self.drawn[name] = value.astype(np.float32)
        assert self.drawn[name].shape == tuple(shape), name
        return torch.from_numpy(self.drawn[name]).double()

    def conv(self, x, c_out, k, stride=1, bias=False):
        scope = "base_model/conv2d" + (f"_{self.convs}" if self.convs else "")
        self.convs += 1
        w = self.variable(f"{scope}/kernel", (k, k, x.shape[1], c_out), normal=True)
        b = self.variable(f"{scope}/bias", (c_out,), -1, 1) if bias else None
        if self.device == "meta":  # only the shapes, quickly
            return x.new_empty((len(x), c_out, -(-x.shape[2] // stride), -(-x.shape[3] // stride)))
        begin = (k - 1) // 2
        x = F.pad(x, (begin, k - 1 - begin) * 2)  # SAME at stride 1; fixed padding and VALID above it
        return F.conv2d(x, w.permute(3, 2, 0, 1), b, stride)

    def bn(self, x, relu=True, scope=None, center=True):
        if scope is None:
            scope = "base_model/batch_normalization" + (f"_{self.norms}" if self.norms else "")
            self.norms += 1
        c = x.shape[1]
        gamma = self.variable(f"{scope}/gamma", (c,), 0.5, 1.0)
        beta = self.variable(f"{scope}/beta", (c,), -0.2, 0.3) if center else 0
        mean = self.variable(f"{scope}/moving_mean", (c,), -0.2, 0.3)
        variance = self.variable(f"{scope}/moving_variance", (c,), 0.5, 1.0)
        if self.device == "meta":
            return x
        x = ((x.movedim(1, -1) - mean) / (variance + 1e-5).sqrt() * gamma + beta).movedim(-1, 1)
        return x.clamp(min=0) if relu else x

    def stem(self, x):
        width = int(64 * self.config.width_multiplier)
        if self.config.stem_type == "cifar":
            initial = self.conv(x, width, 3)
            return initial, self.bn(initial)
        if self.config.sk_ratio > 0:
            x = self.bn(self.conv(x, width // 2, 3, 2))
            x = self.bn(self.conv(x, width // 2, 3))
            initial = self.conv(x, width, 3)
        else:
            initial = self.conv(x, width, 7, 2)
        x = self.bn(initial)
        pads = []
        for n in (x.shape[3], x.shape[2]):
            total = max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0)
            pads += [total // 2, total - total // 2]
        return initial, F.max_pool2d(F.pad(x, pads, value=-math.inf), 3, 2)

    def shortcut(self, x, c_out, stride):
        if self.config.sk_ratio > 0:
            padded = F.pad(x, (0, 1, 0, 1))
            real = F.pad(torch.ones_like(x), (0, 1, 0, 1)) if stride == 1 else torch.ones_like(padded)
            pool = [sum(m[..., i : m.shape[2] - 1 + i, j : m.shape[3] - 1 + j] for i in (0, 1) for j in (0, 1))
                    for m in (padded, real)]  # fmt: skip
            x, stride = (pool[0] / pool[1])[..., ::stride, ::stride], 1
        return self.bn(self.conv(x, c_out, 1, stride), relu=False)

    def selective(self, x, filters, stride):
        x = self.bn(self.conv(x, 2 * filters, 3, stride))
        streams = torch.stack([x[:, :filters], x[:, filters:]])
        mixing = streams.sum(0).mean((2, 3), keepdim=True)
        mixing = self.bn(self.conv(mixing, max(int(filters * self.config.sk_ratio), 32), 1))
        mixing = self.conv(mixing, 2 * filters, 1)
        weights = torch.stack([mixing[:, :filters], mixing[:, filters:]]).exp()
        return (streams * weights / weights.sum(0)).sum(0)

    def block(self, x, filters, stride, first):
        basic = self.config.layer_type == "basic"
        c_out = filters if basic else 4 * filters
        shortcut = self.shortcut(x, c_out, stride) if first else x
        if basic:
            x = self.bn(self.conv(x, filters, 3, stride))
            x = self.bn(self.conv(x, filters, 3), relu=False)
        else:
            x = self.bn(self.conv(x, filters, 1))
            if self.config.sk_ratio > 0:
                x = self.selective(x, filters, stride)
            else:
                x = self.bn(self.conv(x, filters, 3, stride))
            x = self.bn(self.conv(x, c_out, 1), relu=False)
        if self.config.se_ratio > 0:
            gate = self.conv(x.mean((2, 3), keepdim=True), max(1, int(filters * self.config.se_ratio)), 1, bias=True)
            x = x / (1 + (-self.conv(gate.clamp(min=0), c_out, 1, bias=True)).exp())
        return (x + shortcut).clamp(min=0)

    def dense(self, x, width, scope):
        return x @ self.variable(f"{scope}/dense/kernel", (x.shape[1], width), normal=True)

    def __call__(self, images):
        self.convs = self.norms = 0
        out = {}
        initial, x = self.stem(images.to(self.device, torch.float64))
        out["initial_conv"], out["initial_max_pool"] = initial, x
        for i, depth in enumerate(self.config.depths):
            for n in range(depth):
                x = self.block(x, int(64 * self.config.width_multiplier) * 2**i, 2 if i and not n else 1, n == 0)
            out[f"block_group{i + 1}"] = x
        hiddens = [x.mean((2, 3))]
        out["h"] = hiddens[0]
        layers, linear = self.config.projection_layers, self.config.projection_type == "linear"
        for j in range(layers):
            last = j == layers - 1
            scope = f"head_contrastive/{'l' if linear else 'nl'}_{j}"
            z = self.dense(hiddens[-1], self.config.projection_dim if last else hiddens[0].shape[1], scope)
            hiddens.append(self.bn(z, not last, f"{scope}/batch_normalization", center=not last))
            out[f"proj_{j + 1}"] = hiddens[-1]
        if self.num_classes:
            scope = "head_supervised/linear_layer"
            bias = self.variable(f"{scope}/dense/bias", (self.num_classes,), -1, 1)
            out["logits"] = self.dense(hiddens[self.config.classifier_layer], self.num_classes, scope) + bias
        return out
