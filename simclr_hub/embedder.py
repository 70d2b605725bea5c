"""Embedder and embed(): decode ahead on threads, batch, run the model; one stream of results in input order.

Unusual: a failed image is a value in the stream, not an exception, and every result carries its position, so that
rows and names cannot fall out of step. Memory is bounded however long the input is.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError, UnreadableImageError, UnsupportedImageError
from .fast import fast_copy
from .image_processing_simclr import SimCLRImageProcessor, normalize_pixels, transform
from .images import FileBytes, describe, is_image_name, load_image
from .loading import load, weights_hash
from .modeling_simclr import SimCLRModel
from .progress import progress_bar


@dataclass(frozen=True)
class Embedding:
    """One image's features: its place in the input, what was given, vector (D,) float32, SHA-256 of the content."""

    position: int
    source: Any
    vector: np.ndarray
    content_hash: bytes


@dataclass(frozen=True)
class Failure:
    """One image that could not be used: its place in the input, what was given, and why."""

    position: int
    source: Any
    error: ImageError


class Embedder:
    """A model made ready to embed, kept for reuse.

    Args:
        model: None (the default checkpoint), an official name ("simclr-v2-r50-sk"), a directory, a Hub id
            ("org/name[@revision]") or a `SimCLRModel`.
        layer: "h", what downstream use wants; or "g1", "g2", ... and "z" for the layers of the projection head.
        normalize: scale each vector to length 1.
        batch_size: images a forward pass; None chooses by device and image size.
        device: a torch device; None takes the GPU if there is one.
        dtype: a torch dtype; None is float32, which is exact.
        exact: the official transform alone, without the antialiasing of large photos; None is the processor's choice.
        workers: threads that read, decode and transform ahead of the model.

    Attributes:
        dim: width of the vectors.
        fingerprint: what determines them: weights, layer, preprocessing, precision, decoder; and "model", its name.

    Raises:
        CheckpointError: the model cannot be loaded.
        ValueError: a layer that the model does not have, a batch size or worker count below 1, or a processor with an
            impossible mean or std.
    """

    def __init__(
        self,
        model: "str | os.PathLike[str] | SimCLRModel | None" = None,
        *,
        layer: str = "h",
        normalize: bool = False,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        exact: bool | None = None,
        workers: int | None = None,
    ):
        if isinstance(model, SimCLRModel):
            processor = SimCLRImageProcessor(size=model.config.image_size)
        else:
            model, processor = load(model)
        self.layer, self.normalize = layer, normalize
        self._projection = _projection_index(layer, model.config.projection_layers)
        self._size: int = processor.size["height"]
        self._exact = processor.exact if exact is None else exact
        self._crop = processor.crop_proportion
        self._mean_std = (processor.image_mean, processor.image_std) if processor.do_normalize else None
        mean_std = ""
        if self._mean_std:
            normalize_pixels(torch.zeros(1, 3, 1, 1), *self._mean_std)  # impossible ones are refused here
            mean_std = "mean {}, std {}, ".format(*(np.array(value).tolist() for value in self._mean_std))
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype or torch.float32
        # On a CPU large batches of large images fall out of the cache; small images need them.
        fitting = max(1, min(32, 32 * 64**2 // self._size**2)) if self._device.type == "cpu" else 64
        self._batch_size = fitting if batch_size is None else batch_size
        self._workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if self._batch_size < 1 or self._workers < 1:
            raise ValueError(f"batch_size={batch_size} and workers={workers} must be at least 1")
        config = model.config
        self.dim = config.projection_dim if self._projection == config.projection_layers > 0 else config.hidden_size
        self.fingerprint = {
            "model": config.name_or_path,
            "weights": weights_hash(model, with_projection=self._projection > 0),
            "layer": layer,
            # The index reads "exact" off its end.
            "preprocessing": f"size {self._size}, crop {self._crop}, {mean_std}"
            + ("exact" if self._exact else "antialiased"),
            "precision": str(self._dtype).removeprefix("torch."),
            "normalized": "yes" if normalize else "no",
            "decoder": "pillow",
        }
        self._model = fast_copy(model, self._device, self._dtype)

    def stream(self, sources: Iterable[Any]) -> Iterator[Embedding | Failure]:
        """Embed images one after another, reading ahead; results come in the order of the input, one for each.

        Args:
            sources: images as `simclr_hub.images.load_image` takes them; any iterable, also an endless one.

        Yields:
            `Embedding` or `Failure`.
        """
        pool = ThreadPoolExecutor(self._workers, "simclr-decode", initializer=torch.set_num_threads, initargs=(1,))
        items = enumerate(sources)
        ahead: deque[tuple[int, Any, Future[tuple[Tensor, bytes]]]] = deque()
        try:
            while True:
                while len(ahead) < 2 * self._batch_size + self._workers:
                    item = next(items, None)
                    if item is None:
                        break
                    ahead.append((*item, pool.submit(self._prepare, item[1])))
                if not ahead:
                    return
                yield from self._run([ahead.popleft() for _ in range(min(self._batch_size, len(ahead)))])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, source: Any) -> tuple[Tensor, bytes]:
        """Pixel values (3, size, size) and content hash; runs on the threads."""
        try:
            image = load_image(source)
            pixels = transform(image.pixels[None], self._size, exact=self._exact, crop_proportion=self._crop)
            if self._mean_std:
                pixels = normalize_pixels(pixels, *self._mean_std)
        except (TypeError, ValueError) as e:
            if isinstance(e, ImageError):
                raise
            raise UnsupportedImageError(f"{describe(source)}: {e}") from e
        return pixels[0], image.content_hash

    def _run(self, batch: list[tuple[int, Any, "Future[tuple[Tensor, bytes]]"]]) -> Iterator[Embedding | Failure]:
        good: list[tuple[Tensor, bytes]] = []
        errors: dict[int, ImageError] = {}
        for position, _, future in batch:
            try:
                good.append(future.result())
            except ImageError as e:
                errors[position] = e
        vectors = iter(self._forward(torch.stack([pixels for pixels, _ in good])) if good else ())
        hashes = iter([content_hash for _, content_hash in good])
        for position, source, _ in batch:
            if position in errors:
                yield Failure(position, source, errors[position])
            else:
                yield Embedding(position, source, next(vectors), next(hashes))

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> np.ndarray:
        """(B, 3, size, size) to vectors (B, D)."""
        pixels = pixels.to(self._device, self._dtype).contiguous(memory_format=torch.channels_last)
        output = self._model(pixels, output_projections=self._projection > 0)
        vectors = output.projections[self._projection - 1] if self._projection else output.pooler_output
        vectors = vectors.float()
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors)
        array: np.ndarray = vectors.cpu().numpy()
        return array


def embed(
    images: Any,
    model: "str | os.PathLike[str] | SimCLRModel | None" = None,
    *,
    layer: str = "h",
    normalize: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    exact: bool | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """SimCLR features of images: h, never the projection g(h) unless `layer` asks for it.

    Args:
        images: one image, or an iterable of images: paths, bytes, binary files, PIL images, arrays, tensors; a folder
            (all images below it, sorted by path: `folder_images` lists them); an array (N, H, W, C) or a tensor
            (N, C, H, W).
        model: see `Embedder`, as are the other arguments.
        layer: "h", "g1", ..., "z".
        normalize: scale each vector to length 1.
        batch_size: images a forward pass.
        device: a torch device.
        dtype: a torch dtype.
        exact: the official transform alone.
        progress: show a bar; None shows one on a terminal when it takes over two seconds.

    Returns:
        float32 (N, D); row i is image i.

    Raises:
        ImageError: the first image that cannot be used, named; `Embedder.stream` goes on instead.
        CheckpointError: the model cannot be loaded.

    Example:
        >>> embed("photos/").shape  # doctest: +SKIP
        (1204, 256)
    """
    embedder = Embedder(
        model, layer=layer, normalize=normalize, batch_size=batch_size, device=device, dtype=dtype, exact=exact
    )
    sources = as_sources(images)
    rows: list[np.ndarray] = []
    with progress_bar("embedding", len(sources) if hasattr(sources, "__len__") else None, show=progress) as advance:
        for item in embedder.stream(sources):
            if isinstance(item, Failure):
                raise item.error
            rows.append(item.vector)
            advance(1)
    return np.stack(rows) if rows else np.empty((0, embedder.dim), np.float32)


def as_sources(images: Any) -> Any:
    """One image, a folder, a batch or an iterable of images, as an iterable of images."""
    if isinstance(images, (str, os.PathLike)):
        return folder_images(images) if os.path.isdir(images) else [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    if isinstance(images, (bytes, bytearray, memoryview, FileBytes, Image.Image)) or hasattr(images, "read"):
        return [images]
    return images


def folder_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image file below a folder by its suffix, sorted by path; symbolic links to folders are not followed.

    Raises:
        UnreadableImageError: the folder, or one below it, cannot be listed, or there is no image in it.
    """

    def refuse(error: OSError) -> None:
        raise UnreadableImageError(f"{describe(error.filename)}: {error.strerror}") from error

    found = [
        Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names if is_image_name(name)
    ]
    if not found:
        raise UnreadableImageError(f"{describe(folder)}: no image files in this folder")
    return sorted(found)


def _projection_index(layer: str, layers: int) -> int:
    """0 for h, j for g's layer j."""
    allowed = ["h", *(f"g{j}" for j in range(1, layers + 1)), *(["z"] if layers else [])]
    if layer not in allowed:
        raise ValueError(f"layer={layer!r} is not one of {', '.join(allowed)}: the layers of this model")
    return 0 if layer == "h" else layers if layer == "z" else int(layer[1:])
