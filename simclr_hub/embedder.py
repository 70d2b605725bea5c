"""Embedder and embed(): decode ahead on threads, batch, run the model; one stream of results in input order.

Memory is bounded however long the input is. torch is imported only where it runs the model, or for a model that has
not been exported yet (see `runtimes`).
"""

import importlib
import math
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict, Unpack, overload

import numpy as np

from ._threads import Pool, result_of
from .errors import CheckpointError, CorruptImageError, ImageError, UnsupportedImageError
from .images import FileBytes, describe, load_image
from .loading import load_whitening, locate
from .pixels import normalize_pixels, transform
from .progress import progress_bar
from .runtimes import H_STAGE3, OnnxRunner, Runner, check_runtime, cores, find_export, may_have_gpu
from .signature import picture_signature
from .sources import as_sources
from .whitening import Whitening, unit_rows

if TYPE_CHECKING:
    import torch

    from .modeling_simclr import SimCLRModel


@dataclass(frozen=True)
class Embedding:
    """One image's features.

    Attributes:
        position: its place in the input.
        source: what was given.
        vector: (D,) float32.
        content_hash: SHA-256 of the content.
        info: what the content tells of itself, see `LoadedImage.info`.
        signature: of the picture, see `signature.picture_signature`.
    """

    position: int
    source: Any
    vector: np.ndarray
    content_hash: bytes
    info: Mapping[str, Any] = field(default_factory=dict)
    signature: bytes = b""


@dataclass(frozen=True)
class Failure:
    """One image that could not be used: its place in the input, what was given, and why."""

    position: int
    source: Any
    error: ImageError


class _Ready(NamedTuple):
    """One image before the model: pixel values (3, size, size), and what goes into its `Embedding`."""

    pixels: np.ndarray
    content_hash: bytes
    info: dict[str, Any]
    signature: bytes


#: Images of a batch: place in the input, what was given, and what is made of it on the threads.
_Batch = list[tuple[int, Any, "Future[_Ready]"]]


#: Side of inputs up to which photos are mostly decoded so small that numpy resizes them, see `pixels.FEW_PIXELS`.
_SMALL = 128
#: Images that could not be used of which a warning names the reason.
_NAMED = 3


class Embedder:
    """A model made ready to embed, kept for reuse: `embedder(images)` is as `embed(images)`.

    It can be pickled, the weights included, and gives the same vectors in another process.

    Args:
        model: None (the default checkpoint), an official name ("simclr-v2-r50-sk"), a directory, a Hub id
            ("org/name[@revision]") or a `SimCLRModel`.
        layer: "h", what downstream use wants; "h+stage3", which has stage 3's averaged map beside it, each of length
            1, and finds a little more; or "g1", "g2", ... and "z" for the layers of the projection head.
        normalize: scale each vector to length 1.
        batch_size: images a forward pass; None chooses by device and image size.
        device: a torch device; None takes the GPU if there is one.
        dtype: a torch dtype, or its name; None is float32, which is exact.
        exact: the official transform alone, of every pixel: without the antialiasing of large photos, and without
            decoding large JPEGs at a reduced size, with PyTorch; None is the processor's choice.
        workers: threads that read, decode and transform ahead of the model, and on a CPU run it, too; None is as many
            as PyTorch would use (`OMP_NUM_THREADS`), on a GPU as there are cores.
        runtime: what runs the model: "torch"; "onnxruntime" (float32 on the CPU); "compile", which takes a minute
            before the first image; None is ONNX Runtime on a CPU in float32, but PyTorch with `exact` and for a model
            in memory, which would have to be exported each time. One that drifts is not used, with a warning.
        whiten: True whitens with what comes with the checkpoint, a `Whitening` with that; None and False do not. For
            comparing by cosine; a linear classifier wants h as it is, standardised.

    Attributes:
        dim: width of the vectors.
        width_of_h: of h alone.
        whitening: the one that is applied, or None.
        fingerprint: what determines them: weights, layer, preprocessing, precision, decoder, and the whitening if
            there is one; and "model", its name.

    Raises:
        CheckpointError: the model cannot be loaded, or no whitening comes with it.
        ValueError: a layer that the model does not have, a whitening of another model or layer, a batch size or worker
            count below 1, or a processor with an impossible mean or std, or a runtime that is not for this device and
            precision.
    """

    def __init__(
        self,
        model: "Model" = None,
        *,
        layer: str = "h",
        normalize: bool = False,
        batch_size: int | None = None,
        device: "str | torch.device | None" = None,
        dtype: "torch.dtype | str | None" = None,
        exact: bool | None = None,
        workers: int | None = None,
        runtime: str | None = None,
        whiten: Whitening | bool | None = None,
    ):
        self.layer, self.normalize = layer, normalize
        place, precision = _device(device), str(dtype or "float32").removeprefix("torch.")
        check_runtime(runtime, place, precision)
        cpu = place == "cpu"
        self._workers = workers if workers is not None else cores() if cpu else min(32, os.cpu_count() or 1)
        on_cpu = cpu and precision == "float32"
        folder: Path | None = None
        exported = None
        if model is None or isinstance(model, (str, os.PathLike)):
            folder, name = locate(model)
            if on_cpu and (runtime == "onnxruntime" or (runtime is None and not exact)):
                exported = find_export(folder, layer)
        else:
            name = model.config.name_or_path or ""
        self._in_memory = folder is None
        drifts = exported is not None and not exported[0].is_right
        if exported and not drifts and (runtime or not exported[0].facts.exact or exact is False):
            facts = exported[0].facts
            if facts.size > _SMALL:
                importlib.import_module("torch")  # which resizes most photos for such an input: not first in a stream
        else:  # with torch
            from .torch_runtime import facts_of, runner_of

            given: Any = model if folder is None else (folder, name)
            exported, loaded, facts = None, *facts_of(given, layer)
        self._exact = facts.exact if exact is None else exact
        self._size, self._crop, self._mean_std = facts.size, facts.crop, facts.mean_std
        mean_std = ""
        if self._mean_std:
            normalize_pixels(np.zeros((1, 3, 1, 1), np.float32), *self._mean_std)  # impossible ones are refused here
            mean_std = "mean {}, std {}, ".format(*(np.array(value).tolist() for value in self._mean_std))
        # On a CPU large batches of large images fall out of the cache; only small images need them, and 8 do.
        fitting = max(1, min(32, 8 * 64**2 // self._size**2)) if cpu else 64
        self._batch_size = fitting if batch_size is None else batch_size
        if self._batch_size < 1 or self._workers < 1:
            raise ValueError(f"batch_size={batch_size} and workers={workers} must be at least 1")
        self.width_of_h, self.dim = facts.width_of_h, facts.dim
        self.fingerprint: dict[str, Any] = {
            "model": name,
            "weights": facts.weights,
            "layer": layer,
            # The index reads "exact" off its end.
            "preprocessing": f"size {self._size}, crop {self._crop}, {mean_std}"
            + ("exact" if self._exact else "antialiased"),
            "precision": precision,
            "normalized": "yes" if normalize else "no",
            "decoder": "pillow, sRGB" if self._exact else "pillow, sRGB, JPEG reduced",
        }
        # An image whose crop has twice the input's size loses nothing that the antialiasing would keep.
        self._reduce_to = None if self._exact else math.ceil((2 * self._size + 1) / self._crop)
        if exported:
            self._run: Runner = OnnxRunner(*exported, threads=self._workers)
        else:
            # With `exact` PyTorch, which is within 1e-5 of the official graph.
            onnx = on_cpu and folder is not None and not self._exact and not drifts
            self._run = runner_of(
                loaded,
                facts,
                runtime or ("onnxruntime" if onnx else "torch"),
                device=place,
                precision=precision,
                batch_size=self._batch_size,
                threads=self._workers,
                folder=folder,
            )
        self._decoding: dict[object, Any] = {}
        self.whitening: Whitening | None = None
        if whiten:
            self.whitening = self.own_whitening() if whiten is True else whiten
            self.check_whitening(self.whitening)
            self.dim = self.whitening.dim
            self.fingerprint["whitening"] = self.whitening.sha256

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_decoding": {}}

    @overload
    def __call__(
        self, images: Any, *, progress: bool | None = None, on_error: Literal["raise"] = "raise"
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self, images: Any, *, progress: bool | None = None, on_error: Literal["skip"]
    ) -> tuple[np.ndarray, list[Any]]: ...

    def __call__(
        self, images: Any, *, progress: bool | None = None, on_error: Literal["raise", "skip"] = "raise"
    ) -> np.ndarray | tuple[np.ndarray, list[Any]]:
        """Embed images as `embed` does.

        Args:
            images: what `embed` takes.
            progress: show a bar; None shows one on a terminal when it takes over two seconds.
            on_error: "raise", or "skip" for what cannot be used.

        Returns:
            float32 (N, D); with `on_error="skip"` the rows (M, D) and what they are of.

        Raises:
            ImageError: the first image that cannot be used, named.
        """
        _check_on_error(on_error)
        return _rows(self, images, progress, on_error)

    def checkpoint_whitening(self) -> Whitening | None:
        """Load the whitening that comes with the checkpoint for this layer; None if none does.

        Raises:
            CheckpointError: it is damaged, or was learnt with other weights than those beside it.
        """
        name = self.fingerprint["model"]
        if self._in_memory and not name:
            return None
        try:
            found = load_whitening(name, self.layer)
        except CheckpointError:
            if self._in_memory:  # its name may be of a place that is gone
                return None
            raise
        if found is None or self._belongs(found):
            return found
        if self._in_memory:  # it was trained on
            return None
        raise CheckpointError(
            f"{name}: the whitening beside the weights was learnt with others; learn it again: "
            f"simclr-hub whiten {name} PHOTOS -o FILE, or do without: --no-whiten, whiten=False"
        )

    def unwhitened(self) -> "Embedder":
        """Return the same embedder without whitening; what is loaded is shared."""
        if self.whitening is None:
            return self
        plain = object.__new__(type(self))
        vars(plain).update(vars(self))
        plain.whitening, plain.dim = None, len(self.whitening.mean)
        plain.fingerprint = {key: value for key, value in self.fingerprint.items() if key != "whitening"}
        return plain

    def own_whitening(self) -> Whitening:
        """Load the same, which must be there.

        Raises:
            CheckpointError: none comes with the checkpoint for this layer, or it cannot be used.
        """
        found = self.checkpoint_whitening()
        if found is None:
            name = self.fingerprint["model"]
            raise CheckpointError(
                f"{name or 'this model'}: no whitening comes with it for layer {self.layer}; learn one: "
                f"simclr-hub whiten {name or 'MODEL'} PHOTOS -o FILE, and give it: whiten=Whitening.load(FILE)"
            )
        return found

    def _belongs(self, whitening: Whitening) -> bool:
        of_weights = whitening.weights in ("", self.fingerprint["weights"])
        return of_weights and whitening.layer == self.layer and len(whitening.mean) == self.dim

    def check_whitening(self, whitening: Whitening) -> None:
        """Refuse one that was learnt with another model or layer.

        Raises:
            ValueError: it was.
        """
        if not self._belongs(whitening):
            raise ValueError(
                f"a whitening of layer {whitening.layer}, {len(whitening.mean)} wide, of weights "
                f"{whitening.weights[:12] or 'unknown'}, for layer {self.layer}, {self.dim} wide, of weights "
                f"{self.fingerprint['weights'][:12]}: give the one that was learnt with this model"
            )

    def stream(
        self, sources: Iterable[Any], *, signatures: bool = False
    ) -> Generator[Embedding | Failure, None, None]:
        """Embed images one after another, reading ahead; results come in the order of the input, one for each.

        Args:
            sources: images as `simclr_hub.images.load_image` takes them; any iterable, also an endless one.
            signatures: also give each picture's signature, by which its copies are found.

        Yields:
            `Embedding` or `Failure`.
        """
        pool = Pool(self._workers, "simclr-embed", partial(_set_torch_threads, 1))
        # What may hang, or has its own threads, has a thread of its own: this one stays free to be interrupted.
        single = Pool(1, "simclr-run", partial(_set_torch_threads, cores())) if self._run.has_own_thread else pool
        waiting: deque[Future[list[Embedding | Failure]]] = deque()
        try:
            batches = self._batches(enumerate(sources), lambda x: pool.submit(partial(self._prepare, x, signatures)))
            first = list(islice(batches, 2))
            if len(first) < 2 and single is pool:  # one batch alone gets all cores; of many, each gets one
                for batch in first:
                    yield from self._results(batch, alone=True)  # here: a thread would cost as much as a small image
                return
            for batch in chain(first, batches):
                waiting.append(single.submit(partial(self._results, batch)))
                if len(waiting) > (self._workers + 1 if single is pool else 2):
                    yield from result_of(waiting.popleft())
            while waiting:
                yield from result_of(waiting.popleft())
        finally:
            pool.close()
            single.close()
            _set_torch_threads()

    def _batches(
        self, items: Iterator[tuple[int, Any]], submit: Callable[[Any], "Future[_Ready]"]
    ) -> Iterator[_Batch]:
        while batch := [(position, source, submit(source)) for position, source in islice(items, self._batch_size)]:
            yield batch

    def _prepare(self, source: Any, signatures: bool) -> "_Ready":
        """Prepare one image for the model; runs on the threads."""
        task = object()
        self._decoding[task] = source
        try:
            return self._decode(source, signatures)
        finally:
            del self._decoding[task]

    def decoding(self) -> list[Any]:
        """Return the images that are being read and decoded at this moment, also for streams that were left."""
        return list(self._decoding.values())

    def _decode(self, source: Any, signatures: bool) -> "_Ready":
        try:
            image = load_image(source, reduce_to=self._reduce_to)
            pixels = transform(image.pixels[None], self._size, exact=self._exact, crop_proportion=self._crop)
            if self._mean_std:
                pixels = normalize_pixels(pixels, *self._mean_std)
        except (TypeError, ValueError) as e:
            if isinstance(e, ImageError):
                raise
            raise UnsupportedImageError(f"{describe(source)}: {e}") from e
        signature = picture_signature(image.pixels) if signatures else b""
        return _Ready(pixels[0], image.content_hash, image.info, signature)

    def _results(self, batch: _Batch, *, alone: bool = False) -> list[Embedding | Failure]:
        good: list[_Ready] = []
        errors: dict[int, ImageError] = {}
        for position, _, future in batch:
            try:
                good.append(result_of(future))
            except ImageError as e:
                errors[position] = e
        vectors: Iterable[np.ndarray] = (
            self._forward(np.stack([ready.pixels for ready in good]), alone) if good else ()
        )
        pairs = zip(vectors, good, strict=True)
        results: list[Embedding | Failure] = []
        for position, source, _ in batch:
            if position in errors:
                results.append(Failure(position, source, errors[position]))
                continue
            vector, ready = next(pairs)
            if np.isfinite(vector).all():
                results.append(Embedding(position, source, vector, ready.content_hash, ready.info, ready.signature))
            else:
                error = CorruptImageError(f"{describe(source)}: its features are not finite ({self._told()})")
                results.append(Failure(position, source, error))
        return results

    def _told(self) -> str:
        return f"model {self.fingerprint['model'] or 'in memory'}, {self.fingerprint['precision']}"

    def _forward(self, pixels: np.ndarray, alone: bool) -> np.ndarray:
        """Turn pixels (B, 3, size, size) into vectors (B, D), which need not be finite."""
        vectors = self._run(pixels, alone=alone)
        with np.errstate(all="ignore"):
            if self.layer == H_STAGE3:
                parts = np.split(vectors, [self.width_of_h], 1)
                vectors = np.concatenate([unit_rows(part)[0] for part in parts], 1, dtype=np.float32)
            if self.whitening:
                vectors = self.whitening.apply(vectors)
            if self.normalize:
                lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
                vectors = vectors / np.maximum(lengths, np.float32(1e-12))
        return vectors


class Settings(TypedDict, total=False):
    """What `embed` and `Embedder` take alike, see `Embedder`."""

    layer: str
    normalize: bool
    batch_size: int | None
    device: "str | torch.device | None"
    dtype: "torch.dtype | str | None"
    exact: bool | None
    runtime: str | None


Model: TypeAlias = "str | os.PathLike[str] | SimCLRModel | None"


@overload
def embed(
    images: Any,
    model: Model = None,
    *,
    progress: bool | None = None,
    on_error: Literal["raise"] = "raise",
    **settings: Unpack[Settings],
) -> np.ndarray: ...


@overload
def embed(
    images: Any,
    model: Model = None,
    *,
    progress: bool | None = None,
    on_error: Literal["skip"],
    **settings: Unpack[Settings],
) -> tuple[np.ndarray, list[Any]]: ...


def embed(
    images: Any,
    model: Model = None,
    *,
    progress: bool | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    **settings: Unpack[Settings],
) -> np.ndarray | tuple[np.ndarray, list[Any]]:
    """Turn images into SimCLR features: h, never the projection g(h) unless `layer` asks for it.

    Args:
        images: one image, or an iterable of images: paths, URLs, bytes, binary files, PIL images, arrays, tensors; a
            folder (all images below it, sorted by path: `sources.folder_images` lists them); a zip or tar file (its
            images in its order: `archives.archive_images`); a data set of the datasets library; an array
            (N, H, W, C) or a tensor (N, C, H, W).
        model: see `Embedder`.
        progress: show a bar; None shows one on a terminal when it takes over two seconds.
        on_error: "raise" ends at the first image that cannot be used; "skip" leaves those out, and one warning says
            how many and which.
        **settings: as `Embedder` takes them: `layer`, `normalize`, `batch_size`, `device`, `dtype`, `exact` and
            `runtime`.

    Returns:
        float32 (N, D), finite; row i is image i. With `on_error="skip"`: the rows (M, D) of the images that can be
        used, and a list of what these M are: as given, the paths of a folder's images, the names of an archive's.

    Raises:
        ImageError: the first image that cannot be used, named; or the folder or archive itself cannot be read.
        CheckpointError: the model cannot be loaded.
        ValueError: a setting that the model or device does not have.

    Example:
        >>> embed("photos/").shape  # doctest: +SKIP
        (1204, 256)
        >>> vectors, paths = embed("photos/", on_error="skip")  # doctest: +SKIP
    """
    _check_on_error(on_error)
    if unknown := sorted(settings.keys() - Settings.__annotations__.keys()):
        raise TypeError(f"embed() got an unexpected keyword argument {unknown[0]!r}")
    embedder = Embedder(model, **settings)
    return _rows(embedder, images, progress, on_error)


def _rows(
    embedder: Embedder, images: Any, progress: bool | None, on_error: str
) -> np.ndarray | tuple[np.ndarray, list[Any]]:
    """Do the work of `embed`; the function that calls this is taken for the user's, for the warning's line."""
    sources = as_sources(images)
    total = len(sources) if hasattr(sources, "__len__") else None
    rows = np.empty((64 if total is None else total, embedder.dim), np.float32)
    used: list[Any] = []
    count, failures = 0, 0
    first: list[str] = []
    with progress_bar("embedding", total, show=progress) as advance, closing(embedder.stream(sources)) as stream:
        for item in stream:
            advance(1)
            if isinstance(item, Failure):
                if on_error == "raise":
                    raise item.error
                failures += 1
                if failures <= _NAMED:
                    first.append(str(item.error))
                continue
            if count == len(rows):  # in place, so that nothing is there twice
                rows.resize((count + count // 4 + 1, embedder.dim), refcheck=False)
            rows[count] = item.vector
            count += 1
            if on_error == "skip":  # a member of an archive would be its bytes
                used.append(item.source.name if isinstance(item.source, FileBytes) else item.source)
    rows.resize((count, embedder.dim), refcheck=False)
    if on_error == "raise":
        return rows
    if failures:
        more = "; ..." if failures > _NAMED else ""
        text = f"{failures:,} of {count + failures:,} images were left out: {'; '.join(first)}{more}"
        warnings.warn(text, UserWarning, stacklevel=3)
    return rows, used


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is neither 'raise' nor 'skip'")


def _device(device: Any) -> str:
    """Return a torch device's name, with its number if it has one, importing torch only where it is not the CPU."""
    if str(device) == "cpu" or (device is None and not may_have_gpu()):
        return "cpu"
    import torch

    try:
        found = torch.device(device or "cuda")
        torch.empty(0, device=found)
    except (AssertionError, NotImplementedError, RuntimeError) as e:
        raise ValueError(f"device={str(device)!r} cannot be used here: {str(e).partition('. ')[0]}") from e
    if found.type == "cpu":
        return "cpu"
    if str(found) == "cuda":  # the current one, which is another in each thread
        found = torch.device("cuda", torch.cuda.current_device())
    return str(found)


def _set_torch_threads(number: int | None = None) -> None:
    """Give this thread so many of torch's threads, if torch is there.

    PyTorch gives every new thread the number that was set last: None sets this thread's own again.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(number or torch.get_num_threads())
