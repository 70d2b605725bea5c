"""SimCLR v1 and v2, exact: pretrained models, features, and image search.

    from an image to h:          embed, Embedder, load
    from h to a searchable index: SimilarityIndex
    the model in transformers:   SimCLRConfig, SimCLRModel, SimCLRForImageClassification, SimCLRBackbone,
                                 SimCLRImageProcessor

Importing this does not load faiss, datasets or the training code; it registers SimCLR with transformers' Auto classes.
"""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)

from .configuration_simclr import SimCLRConfig
from .embedder import Embedder, Embedding, Failure, embed
from .errors import SimCLRHubError
from .image_processing_simclr import SimCLRImageProcessor
from .loading import load
from .modeling_simclr import SimCLRBackbone, SimCLRForImageClassification, SimCLRModel

AutoConfig.register("simclr", SimCLRConfig, exist_ok=True)
AutoModel.register(SimCLRConfig, SimCLRModel, exist_ok=True)
AutoModelForImageClassification.register(SimCLRConfig, SimCLRForImageClassification, exist_ok=True)
AutoBackbone.register(SimCLRConfig, SimCLRBackbone, exist_ok=True)
AutoImageProcessor.register(SimCLRConfig, image_processor_classes={"torchvision": SimCLRImageProcessor}, exist_ok=True)

if TYPE_CHECKING:
    from .index import Match, SimilarityIndex

__version__ = "0.1.0"
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


def __getattr__(name: str) -> Any:
    if name in ("Match", "SimilarityIndex"):  # loads sqlite3 and faiss: only when asked for
        from . import index

        return getattr(index, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
