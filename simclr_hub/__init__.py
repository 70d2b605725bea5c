"""SimCLR v1 and v2, exact: pretrained models, features, and image search.

    from an image to h:          embed, Embedder, load
    from h to a searchable index: SimilarityIndex
    the model in transformers:   SimCLRConfig, SimCLRModel, SimCLRForImageClassification, SimCLRBackbone,
                                 SimCLRImageProcessor

Importing this loads neither torch nor transformers: each name is imported when it is first asked for, and SimCLR is
registered with transformers' Auto classes when those are.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _auto

if TYPE_CHECKING:
    from .configuration_simclr import SimCLRConfig
    from .embedder import Embedder, Embedding, Failure, embed
    from .errors import SimCLRHubError
    from .image_processing_simclr import SimCLRImageProcessor
    from .index import Match, SimilarityIndex
    from .loading import load
    from .modeling_simclr import SimCLRBackbone, SimCLRForImageClassification, SimCLRModel

__version__ = "0.2.0"
__all__ = [
    "Embedder",
    "Embedding",
    "Failure",
    "Match",
    "SimCLRBackbone",
    "SimCLRConfig",
    "SimCLRForImageClassification",
    "SimCLRHubError",
    "SimCLRImageProcessor",
    "SimCLRModel",
    "SimilarityIndex",
    "embed",
    "load",
]
#: Module -> what of the table of contents is in it.
_CONTENTS = {
    "configuration_simclr": ("SimCLRConfig",),
    "embedder": ("Embedder", "Embedding", "Failure", "embed"),
    "errors": ("SimCLRHubError",),
    "image_processing_simclr": ("SimCLRImageProcessor",),
    "index": ("Match", "SimilarityIndex"),
    "loading": ("load",),
    "modeling_simclr": ("SimCLRBackbone", "SimCLRForImageClassification", "SimCLRModel"),
}
_MODULE_OF = {name: module for module, names in _CONTENTS.items() for name in names}

_auto.install()


def __getattr__(name: str) -> Any:
    if name in _CONTENTS:  # as if it had been imported with the package
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value  # so that this is not called again
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
