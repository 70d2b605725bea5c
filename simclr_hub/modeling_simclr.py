"""SimCLR's encoder f and projection head g in PyTorch, equal to the official inference graph.

Travels to the Hub as remote code, so it imports only torch, transformers and what travels beside it.

Where published ports go wrong (each changes h by 0.7 to 7 %):
- the max-pool pads as TensorFlow's SAME does: an even side only at its end, not on both sides;
- the average pool of a selective-kernel shortcut counts padded zeros at stride 2, and only real pixels at stride 1;
- the last layer of g has a BatchNorm without beta.

Source: google-research/simclr, `resnet.py` and `model_util.py`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutputWithNoAttention
from transformers.utils.generic import ModelOutput

from .configuration_simclr import SimCLRConfig
from .model_folder import weight_files


@dataclass
class SimCLRModelOutput(ModelOutput):
    """Output of `SimCLRModel`.

    Args:
        last_hidden_state: (B, C, H', W'), the last block group's map.
        pooler_output: h, (B, D): its mean over space, the features for every downstream use.
        projections: with `output_projections=True`, the output of every layer of g in order, the last being z.
        hidden_states: with `output_hidden_states=True`, the stem's map, then each block group's.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    projections: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class SimCLRConvLayer(nn.Module):
    """Convolution without bias, BatchNorm, and ReLU unless `activation=False`.

    `starts_at_zero` initialises BatchNorm's scale to 0, for the last of a block: a new block is its shortcut.
    """

    def __init__(
        self,
        config: SimCLRConfig,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        activation: bool = True,
        starts_at_zero: bool = False,
    ):
        super().__init__()
        self.convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        self.normalization = nn.BatchNorm2d(c_out, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.normalization.starts_at_zero = starts_at_zero  # type: ignore[assignment]
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalization(self.convolution(x))
        return F.relu(x) if self.activation else x


class SimCLRStem(nn.Module):
    """Image to the first map: 1/4 of the side (imagenet), all of it (cifar), or 1/2 (small)."""

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        width = config.embedding_size
        self.pool = config.stem_type == "imagenet"
        if config.stem_type != "imagenet":
            stride = 1 if config.stem_type == "cifar" else 2
            layers = [SimCLRConvLayer(config, config.num_channels, width, 3, stride)]
        elif config.sk_ratio > 0:
            layers = [
                SimCLRConvLayer(config, config.num_channels, width // 2, 3, stride=2),
                SimCLRConvLayer(config, width // 2, width // 2, 3),
                SimCLRConvLayer(config, width // 2, width, 3),
            ]
        else:
            layers = [SimCLRConvLayer(config, config.num_channels, width, 7, stride=2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.layers(pixel_values)
        if self.pool:
            # SAME: an odd side is padded by 1 at both ends, an even one by 1 at its end, which ceil_mode supplies.
            x = F.max_pool2d(x, 3, 2, padding=(x.shape[-2] % 2, x.shape[-1] % 2), ceil_mode=True)
        return x


class SimCLRShortcut(nn.Module):
    """The first block's projection: 1x1 convolution; with selective kernels after a 2x2 average pool (ResNet-D)."""

    def __init__(self, config: SimCLRConfig, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.pool = config.sk_ratio > 0
        self.stride = stride
        self.projection = SimCLRConvLayer(config, c_in, c_out, 1, 1 if self.pool else stride, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool and self.stride > 1:
            # Zeros at the end of an odd side, and they count.
            x = F.avg_pool2d(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)), 2, self.stride)
        elif self.pool:
            # A repeated last row and column leave the mean of the real pixels.
            x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
        return self.projection(x)


class SimCLRSelectiveKernel(nn.Module):
    """Two 3x3 streams mixed by a softmax over the streams, computed from their pooled sum (arXiv 1903.06586)."""

    def __init__(self, config: SimCLRConfig, channels: int, stride: int):
        super().__init__()
        mixing = max(int(channels * config.sk_ratio), 32)
        self.streams = SimCLRConvLayer(config, channels, 2 * channels, 3, stride)
        self.squeeze = SimCLRConvLayer(config, channels, mixing, 1)
        self.excite = nn.Conv2d(mixing, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.streams(x).chunk(2, dim=1)  # each (B, C, H, W)
        pooled = (first + second).mean((2, 3), keepdim=True)
        weights = torch.stack(self.excite(self.squeeze(pooled)).chunk(2, dim=1)).softmax(0)  # (2, B, C, 1, 1)
        return first * weights[0] + second * weights[1]


class SimCLRSqueezeExcitation(nn.Module):
    """Channel gates from the pooled map (arXiv 1709.01507)."""

    def __init__(self, config: SimCLRConfig, c_block: int, c_out: int):
        super().__init__()
        reduced = max(1, int(c_block * config.se_ratio))
        self.reduce = nn.Conv2d(c_out, reduced, 1)
        self.expand = nn.Conv2d(reduced, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class SimCLRBlock(nn.Module):
    """Residual block, basic (3x3, 3x3) or bottleneck (1x1, 3x3 with the stride, 1x1 to 4x the channels)."""

    def __init__(self, config: SimCLRConfig, c_in: int, channels: int, stride: int, first: bool):
        super().__init__()
        c_out = channels * config.expansion
        layers: list[nn.Module]
        self.shortcut = SimCLRShortcut(config, c_in, c_out, stride) if first else nn.Identity()
        if config.layer_type == "basic":
            layers = [
                SimCLRConvLayer(config, c_in, channels, 3, stride),
                SimCLRConvLayer(config, channels, c_out, 3, activation=False, starts_at_zero=True),
            ]
        else:
            selective = config.sk_ratio > 0
            layers = [
                SimCLRConvLayer(config, c_in, channels, 1),
                SimCLRSelectiveKernel(config, channels, stride)
                if selective
                else SimCLRConvLayer(config, channels, channels, 3, stride),
                SimCLRConvLayer(config, channels, c_out, 1, activation=False, starts_at_zero=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.gate = SimCLRSqueezeExcitation(config, channels, c_out) if config.se_ratio > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gate(self.layers(x)) + self.shortcut(x))


class SimCLREncoder(nn.Module):
    """f: the stem and the block groups."""

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        self.stem = SimCLRStem(config)
        self.stages = nn.ModuleList()
        c_in = config.embedding_size
        for i, depth in enumerate(config.depths):
            channels = config.embedding_size * 2**i
            blocks = []
            for block in range(depth):
                stride = 2 if i > 0 and block == 0 else 1
                blocks.append(SimCLRBlock(config, c_in, channels, stride, first=block == 0))
                c_in = channels * config.expansion
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stem and of every group, each (B, C_i, H_i, W_i), from (B, 3, H, W)."""
        maps: tuple[Tensor, ...] = (self.stem(pixel_values),)
        for stage in self.stages:
            maps += (stage(maps[-1]),)
        return maps


class SimCLRProjectionLayer(nn.Module):
    """One layer of g: dense without bias, BatchNorm, ReLU; the last without beta and without ReLU."""

    def __init__(self, config: SimCLRConfig, d_in: int, d_out: int, last: bool):
        super().__init__()
        self.dense = nn.Linear(d_in, d_out, bias=False)
        self.normalization = nn.BatchNorm1d(d_out, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        if last:
            self.normalization.register_parameter("bias", None)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalization(self.dense(x))
        return x if self.last else F.relu(x)


class SimCLRProjectionHead(nn.Module):
    """g: `projection_layers` layers from h's width D to `projection_dim`; for training only."""

    def __init__(self, config: SimCLRConfig):
        super().__init__()
        n, widths = config.projection_layers, [config.hidden_size, *config.projection_sizes]
        self.layers = nn.ModuleList(
            SimCLRProjectionLayer(config, widths[j], widths[j + 1], last=j == n - 1) for j in range(n)
        )

    def forward(self, h: Tensor) -> tuple[Tensor, ...]:
        """Compute the output of every layer from h (B, D); empty without a head."""
        outputs: tuple[Tensor, ...] = ()
        for layer in self.layers:
            outputs += (layer(outputs[-1] if outputs else h),)
        return outputs


class SimCLRPreTrainedModel(PreTrainedModel):
    """Initialisation as the official code's, and loading that refuses what would be a random model."""

    config: SimCLRConfig
    base_model_prefix = "simclr"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # transformers itself annotates it more narrowly
    _no_split_modules = ["SimCLRBlock"]
    _has_projection = True

    def __init__(self, config: SimCLRConfig, *args: Any, **kwargs: Any):
        config.validate()  # from_pretrained(dir, depths=...) sets fields one by one, after the first validation
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # Truncated at 2 sigma with variance 1/fan_in; 0.8796 is the std of a unit normal truncated there.
            std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                ones = name == "running_var" or (name == "weight" and not getattr(module, "starts_at_zero", False))
                (init.ones_ if ones else init.zeros_)(value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, but from safetensors only; weights that do not belong here raise ValueError.

        Of a folder nothing is opened that lies outside it, and its config may not announce more weights than its files
        have bytes. Weights may not be missing, unexpected or impossible: only a classifier may be missing (it is then
        new, to be trained), and only parts that this class does not have (g in a backbone, a classifier in a bare
        model) may be left over.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False: weights are read from safetensors only; see `simclr-hub convert`")
        if pretrained_model_name_or_path is not None and os.path.exists(pretrained_model_name_or_path):
            cls._check_folder(Path(pretrained_model_name_or_path), kwargs)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        model._check_loaded(info, str(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    @classmethod
    def _check_folder(cls, folder: Path, kwargs: dict[str, Any]) -> None:
        """Refuse a folder before anything is opened or allocated that should not be."""
        if not folder.is_dir():
            raise ValueError(f"{folder}: not a folder; give the folder that holds config.json and model.safetensors")
        files = weight_files(folder / (kwargs.get("subfolder") or ""), kwargs.get("variant"))
        config = kwargs.get("config")
        if not isinstance(config, SimCLRConfig):
            given = {k: v for k, v in kwargs.items() if k == "subfolder" or k in SimCLRConfig.__annotations__}
            config = SimCLRConfig.from_pretrained(config or folder, local_files_only=True, **given)
        parameters = config.encoder_parameters + (config.projection_parameters if cls._has_projection else 0)
        if parameters > (size := sum(file.stat().st_size for file in files)):
            raise ValueError(f"{folder}: weights are missing: {parameters:,} by its config, in {size:,} bytes")

    def _check_loaded(self, info: dict[str, Any], name: str) -> None:
        headless = self.config.projection_layers == 0  # then a head in the file is left out on purpose
        mismatched = [key[0] if isinstance(key, tuple) else key for key in info.get("mismatched_keys", ())]
        impossible = [
            key
            for key, value in self.state_dict().items()
            if value.is_floating_point()
            and not value.is_meta
            and (not bool(value.isfinite().all()) or (key.endswith("running_var") and bool((value < 0).any())))
        ]
        problems = [
            f"{len(keys)} {what} ({', '.join(sorted(keys)[:4])}{', ...' if len(keys) > 4 else ''})"
            for what, keys in (
                ("missing", [k for k in info["missing_keys"] if not k.startswith("classifier.")]),
                ("unexpected", [k for k in info["unexpected_keys"] if not (headless and "projection." in k)]),
                ("of another shape", [k for k in mismatched if not k.startswith("classifier.")]),
                ("with non-finite or impossible values", impossible),
            )
            if keys
        ]
        if problems:
            raise ValueError(
                f"{name} does not hold the weights of this {type(self).__name__}: {'; '.join(problems)}. "
                "Check that config.json belongs to the weights, or convert them with `simclr-hub convert`."
            )


class SimCLRModel(SimCLRPreTrainedModel):
    """Encoder f and, if the config has one, projection head g.

    Example:
        >>> model = SimCLRModel(SimCLRConfig.v1())
        >>> model(torch.zeros(1, 3, 224, 224)).pooler_output.shape
        torch.Size([1, 2048])
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.encoder = SimCLREncoder(config)
        self.projection = SimCLRProjectionHead(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_projections: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SimCLRModelOutput | tuple[Any, ...]:
        """Compute h and, when asked, every layer of g.

        Args:
            pixel_values: (B, 3, H, W), RGB in [0, 1], as `SimCLRImageProcessor` gives it.
            output_hidden_states: also return the stem's and the block groups' maps.
            output_projections: also return g's layers; without it g is not computed.
            return_dict: False gives a tuple.
            **kwargs: ignored, as in every transformers model.
        """
        maps = self.encoder(pixel_values)
        h = maps[-1].mean((2, 3))  # (B, D)
        wants_maps = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = SimCLRModelOutput(
            last_hidden_state=maps[-1],
            pooler_output=h,
            projections=self.projection(h) if output_projections else None,
            hidden_states=maps if wants_maps else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class SimCLRForImageClassification(SimCLRPreTrainedModel):
    """One dense layer on h, or on the layer of g that `config.classifier_layer` names."""

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.simclr = SimCLRModel(config)
        width = [config.hidden_size, *config.projection_sizes][config.classifier_layer]
        self.classifier = nn.Linear(width, config.num_labels or 0)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        all_projections: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Compute logits (B, num_labels) and, with labels (B,), the loss.

        Args:
            pixel_values: (B, 3, H, W), RGB in [0, 1], as `SimCLRImageProcessor` gives it.
            labels: (B,), classes.
            output_hidden_states: also return the stem's and the block groups' maps.
            all_projections: compute g above the classifier, too, whose moving statistics then move in training.
            return_dict: False gives a tuple.
            **kwargs: ignored, as in every transformers model.
        """
        layer = self.config.classifier_layer
        features = self.simclr(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_projections=layer > 0 or all_projections,
            return_dict=True,
        )
        vectors = features.projections[layer - 1] if layer else features.pooler_output
        logits = self.classifier(F.normalize(vectors) if self.config.classifier_normalized else vectors)
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=features.hidden_states,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class SimCLRBackbone(BackboneMixin, SimCLRPreTrainedModel):
    """The encoder's maps for detection and segmentation: `out_features` of "stem", "stage1" .. "stage4"."""

    has_attentions = False
    _has_projection = False
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"(^|\.)projection\."]

    def __init__(self, config: SimCLRConfig):
        super().__init__(config)
        self.num_features = [config.embedding_size, *config.hidden_sizes]
        self.encoder = SimCLREncoder(config)
        self.post_init()

    def forward(  # type: ignore[override]  # no attentions, and further arguments are let pass
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Compute the feature maps of the chosen stages, each (B, C_i, H_i, W_i)."""
        maps = self.encoder(pixel_values)
        wants_maps = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BackboneOutput(
            feature_maps=tuple(m for m, name in zip(maps, self.stage_names, strict=True) if name in self.out_features),
            hidden_states=maps if wants_maps else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


__all__ = ["SimCLRBackbone", "SimCLRForImageClassification", "SimCLRModel", "SimCLRPreTrainedModel"]
