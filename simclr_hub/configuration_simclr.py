"""SimCLRConfig: every SimCLR v1 and v2 architecture as one transformers config.

Travels to the Hub as remote code, so it imports only the standard library, transformers, huggingface_hub, and what
travels beside it.
"""

import os
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .model_folder import read_json

#: Blocks in each of the four groups, by the depth in the name (official `resnet.py`, `resnet()`).
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}

#: What each number may be, both ends included, so that a stranger's config.json cannot ask for more than a machine
#: has; the released models stay far within.
BOUNDS: dict[str, tuple[float, float]] = {
    "num_channels": (1, 1024),
    "width_multiplier": (1 / 64, 16),
    "sk_ratio": (0, 1),
    "se_ratio": (0, 1),
    "projection_layers": (0, 16),
    "projection_dim": (1, 1 << 16),
    "projection_hidden_dim": (1, 1 << 16),
    "classifier_layer": (0, 16),
    "sure_above": (0, 1),
    "image_size": (1, 2048),
    "batch_norm_eps": (1e-9, 1),
    "batch_norm_momentum": (0, 1),
    "num_labels": (0, 1 << 17),
}
MAX_GROUPS, MAX_BLOCKS = 8, 512
#: Of f, g and a classifier together: 2.7 times the largest released model's, 8 GiB.
MAX_PARAMETERS = 1 << 31

_DTYPES = ("float32", "float16", "bfloat16", "float64")
# What transformers itself writes into, or reads out of, a config besides declared fields.
_TRANSFORMERS_KEYS = frozenset(
    "model_type num_labels torch_dtype name_or_path _name_or_path _commit_hash auto_map custom_pipelines "
    "output_attentions attn_implementation experts_implementation _attn_implementation_internal "
    "_experts_implementation_internal per_layer_config quantization_config stage_names out_features out_indices "
    "_out_features _out_indices use_cache".split()
)
# Of these, what would fetch kernels from the Hub, load other libraries or change the layers: nothing for a ResNet.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attn_implementation", "experts_implementation"), (None, "eager", "sdpa")),
    **dict.fromkeys(("per_layer_config", "quantization_config"), (None, {})),
}


@strict
class SimCLRConfig(BackboneConfigMixin, PreTrainedConfig):
    """Architecture of a SimCLR encoder f, its projection head g, and an optional classifier.

    Args:
        num_channels: channels of the input image.
        depths: blocks in each group; `DEPTHS` has the named ones.
        layer_type: `"bottleneck"` (ResNet-50 and deeper) or `"basic"` (ResNet-18 and 34).
        width_multiplier: channels relative to the plain ResNet; fractions are allowed where `64 x width` is whole.
        sk_ratio: > 0 replaces a bottleneck's 3x3 with selective kernels and the stem and shortcuts with ResNet-D's
            (official value 0.0625).
        se_ratio: > 0 adds squeeze-and-excitation after the last BatchNorm of each block.
        stem_type: `"imagenet"` (7x7 or three 3x3, stride 2, then max-pool), `"cifar"` (one 3x3, stride 1, no pool:
            what the official code builds for images of 32 pixels or less) or `"small"` (one 3x3, stride 2, no pool:
            ours, for pretraining on small images without a GPU).
        projection_layers: layers of g; 0 for none (then z = h). v1 trained 2, v2 3.
        projection_type: `"nonlinear"`, or `"linear"` (then g is one layer).
        projection_dim: width of z.
        projection_hidden_dim: width of g's layers before the last; None: h's, as in the released checkpoints.
        classifier_layer: what the classifier sits on: 0 = h, j = the output of g's layer j after its ReLU.
            The released 1 % and 10 % fine-tuned v2 checkpoints use 1.
        classifier_normalized: whether the classifier sees its layer's vectors scaled to length 1.
        sure_above: softmax probability above which a prediction is sure, measured on images that it was not learnt
            from; 1: none is; None: not measured.
        image_size: side in pixels that the weights were trained for.
        batch_norm_eps: BatchNorm's epsilon.
        batch_norm_momentum: PyTorch's momentum of the moving statistics (1 - TensorFlow's decay).

    Raises:
        ValueError: an unknown key, or one with which transformers would load more than this network.
        StrictDataclassError: huggingface_hub's, for values of a wrong type, out of bounds, or that do not fit each
            other.

    Example:
        >>> SimCLRConfig.v2(depth=152, width_multiplier=3, selective_kernel=True).hidden_size
        6144
    """

    model_type = "simclr"

    num_channels: int = 3
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    width_multiplier: float | int = 1
    sk_ratio: float | int = 0.0
    se_ratio: float | int = 0.0
    stem_type: str = "imagenet"
    projection_layers: int = 2
    projection_type: str = "nonlinear"
    projection_dim: int = 128
    projection_hidden_dim: int | None = None
    classifier_layer: int = 0
    classifier_normalized: bool = False
    sure_above: float | int | None = None
    image_size: int = 224
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers turns an unknown key into an attribute, so that a typo gives another model.
        unknown = sorted(kwargs.keys() - _TRANSFORMERS_KEYS)
        if unknown:
            known = sorted(f for f in type(self).__annotations__ if not f.startswith("_"))
            raise ValueError(f"unknown SimCLRConfig key {', '.join(unknown)}; the architecture has {', '.join(known)}")
        for name, allowed in _WITHOUT_EFFECT.items():
            if kwargs.get(name) not in allowed:
                raise ValueError(f"{name}={_short(kwargs[name])} has no place in a SimCLRConfig; leave it out")
        if (classes := kwargs.get("num_labels")) is not None:
            _within("num_labels", classes)  # before transformers names each of them
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            if dtype is not None and str(dtype).removeprefix("torch.") not in _DTYPES:
                raise ValueError(f"{name}={_short(dtype)} is not one of {', '.join(_DTYPES)}")
        self.depths = list(self.depths)
        if not 1 <= len(self.depths) <= MAX_GROUPS:
            raise ValueError(f"depths={_short(self.depths)}: {len(self.depths):,} groups, not 1 to {MAX_GROUPS}")
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]
        kwargs.pop("stage_names", None)
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        return read_json(Path(json_file))

    @classmethod
    def v1(cls, depth: int = 50, width_multiplier: float = 1, **kwargs: Any) -> "SimCLRConfig":
        """Configure SimCLR v1 (arXiv 2002.05709): ResNet of `depth`, head of 2 layers."""
        return cls(**{**_encoder(depth, width_multiplier), "projection_layers": 2, **kwargs})

    @classmethod
    def v2(
        cls, depth: int = 50, width_multiplier: float = 1, selective_kernel: bool = False, **kwargs: Any
    ) -> "SimCLRConfig":
        """Configure SimCLR v2 (arXiv 2006.10029): ResNet of `depth`, perhaps selective kernels, head of 3 layers."""
        sk_ratio = 0.0625 if selective_kernel else 0.0
        return cls(**{**_encoder(depth, width_multiplier), "sk_ratio": sk_ratio, "projection_layers": 3, **kwargs})

    @property
    def expansion(self) -> int:
        """Return a block's output channels over its inner channels."""
        return 4 if self.layer_type == "bottleneck" else 1

    @property
    def embedding_size(self) -> int:
        """Return the channels after the stem."""
        return int(64 * self.width_multiplier)

    @property
    def hidden_sizes(self) -> list[int]:
        """Return the channels of each block group's output."""
        return [self.embedding_size * 2**i * self.expansion for i in range(len(self.depths))]

    @property
    def hidden_size(self) -> int:
        """Return the width D of h."""
        return self.hidden_sizes[-1]

    @property
    def projection_sizes(self) -> list[int]:
        """Return the output width of each of g's layers."""
        hidden = self.projection_hidden_dim or self.hidden_size
        return [hidden] * (self.projection_layers - 1) + [self.projection_dim] * min(self.projection_layers, 1)

    @property
    def encoder_parameters(self) -> int:
        """Count the weights of f without making it."""
        bottleneck, selective = self.layer_type == "bottleneck", self.sk_ratio > 0
        width = self.embedding_size

        def conv(c_in: int, c_out: int, kernel: int = 1) -> int:
            return c_in * c_out * kernel**2 + 2 * c_out  # and BatchNorm's two

        if self.stem_type != "imagenet" or not selective:
            total = conv(self.num_channels, width, 7 if self.stem_type == "imagenet" else 3)
        else:
            total = (
                conv(self.num_channels, width // 2, 3) + conv(width // 2, width // 2, 3) + conv(width // 2, width, 3)
            )
        c_in = width
        for i, (depth, c_out) in enumerate(zip(self.depths, self.hidden_sizes, strict=True)):
            c = width * 2**i
            mixing, reduced = max(int(c * self.sk_ratio), 32), max(1, int(c * self.se_ratio))
            middle = conv(c, 2 * c, 3) + conv(c, mixing) + 2 * mixing * c if selective else conv(c, c, 3)
            first, rest = (conv(x, c) + middle if bottleneck else conv(x, c, 3) for x in (c_in, c_out))
            each = conv(c, c_out) if bottleneck else conv(c, c_out, 3)
            each += 2 * reduced * c_out + reduced + c_out if self.se_ratio > 0 else 0
            total += conv(c_in, c_out) + first + (depth - 1) * rest + depth * each
            c_in = c_out
        return total

    @property
    def projection_parameters(self) -> int:
        """Count the weights of g."""
        sizes = [self.hidden_size, *self.projection_sizes]
        total = sum(d_in * d_out + 2 * d_out for d_in, d_out in zip(sizes, sizes[1:], strict=False))
        return total - (sizes[-1] if self.projection_layers else 0)  # the last BatchNorm has no beta

    def validate_bounds(self) -> None:
        """Refuse a number outside `BOUNDS`, or more of everything together than a machine can hold."""
        for name in BOUNDS:
            value = getattr(self, name)
            if value is not None:  # the types say where it may be
                _within(name, value)
        if any(isinstance(n, bool) or n < 1 for n in self.depths):
            raise ValueError(f"depths={_short(self.depths)}: at least one block in each group")
        if sum(self.depths) > MAX_BLOCKS:
            raise ValueError(f"depths={_short(self.depths)}: more than {MAX_BLOCKS} blocks")
        classifier = (self.num_labels or 0) * max(self.hidden_size, *self.projection_sizes, 0)
        if (parameters := self.encoder_parameters + self.projection_parameters + classifier) > MAX_PARAMETERS:
            raise ValueError(
                f"width_multiplier={self.width_multiplier:g}, depths={self.depths}, projection_layers="
                f"{self.projection_layers}, projection_hidden_dim={self.projection_hidden_dim} and {self.num_labels} "
                f"classes make {parameters:,} parameters, more than {MAX_PARAMETERS:,}"
            )

    def validate_blocks(self) -> None:
        """Block type and its combination with selective kernels."""
        _one_of("layer_type", self.layer_type, ("bottleneck", "basic"))
        if self.sk_ratio > 0 and self.layer_type == "basic":
            raise ValueError(
                "sk_ratio > 0 with layer_type='basic': no SimCLR code builds it; use sk_ratio=0 or depth >= 50"
            )

    def validate_widths(self) -> None:
        """Refuse channels that do not come out whole, an SK stem's also when halved."""
        width = 64 * self.width_multiplier
        step = 2 if self.sk_ratio > 0 and self.stem_type == "imagenet" else 1
        if width < step or width % step:
            raise ValueError(
                f"width_multiplier={self.width_multiplier}: 64 x width = {width:g} must be a multiple of {step}"
            )

    def validate_stem(self) -> None:
        """Refuse a stem that is none of the three."""
        _one_of("stem_type", self.stem_type, ("imagenet", "cifar", "small"))

    def validate_projection(self) -> None:
        """Refuse an impossible head, or layer that the classifier sits on."""
        _one_of("projection_type", self.projection_type, ("nonlinear", "linear"))
        if self.projection_type == "linear" and self.projection_layers > 1:
            raise ValueError(
                f"projection_layers={self.projection_layers} with projection_type='linear': 0 is no head, a linear "
                "head has 1 layer"
            )
        if not 0 <= self.classifier_layer <= self.projection_layers:
            raise ValueError(
                f"classifier_layer={self.classifier_layer} must be 0 (h) to projection_layers={self.projection_layers}"
            )


def _within(name: str, value: Any) -> None:
    low, high = BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}={_short(value)} must be a number from {low:g} to {high:g}")


def _short(value: Any) -> str:
    """Return a value as text for a message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _encoder(depth: int, width_multiplier: float) -> dict[str, Any]:
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth} is not one of {', '.join(map(str, DEPTHS))}; for others pass depths=(...)")
    return {
        "depths": DEPTHS[depth],
        "layer_type": "bottleneck" if depth >= 50 else "basic",
        "width_multiplier": width_multiplier,
    }


__all__ = ["SimCLRConfig"]
