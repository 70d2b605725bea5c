"""What makes the vectors of an index: its embedder, loaded when it is needed, checked against the fingerprint."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import IndexMismatchError, SimCLRHubError
from ..whitening import Whitening
from .store import About

if TYPE_CHECKING:
    from ..embedder import Embedding, Failure


class EmbedderLike(Protocol):
    """What the index needs of `simclr_hub.Embedder`; one that whitens also needs its `unwhitened`.

    One that tells what it is `decoding` keeps a sync that is interrupted from suspecting more than that.
    """

    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def fingerprint(self) -> Mapping[str, Any]: ...  # noqa: D102
    def stream(  # noqa: D102
        self, sources: Iterable[Any], *, signatures: bool = False
    ) -> "Iterator[Embedding | Failure]": ...


class Maker:
    """The embedder of an index.

    Args:
        about: the fingerprint of what made it.
        name: of the index, for messages.
        model: an embedder, or a model as `Embedder` takes it, which is loaded with the settings that the fingerprint
            tells of; None loads the recorded model when it is needed.

    Raises:
        IndexMismatchError: `model` would not give the vectors that the index holds.
        CheckpointError: `model` cannot be loaded.
    """

    def __init__(self, about: About, name: str, model: Any = None):
        self._about, self._name = about, name
        self._lock = threading.Lock()
        self._embedder: EmbedderLike | None = None
        if model is not None:
            settings = {} if is_embedder(model) else _settings(self._about.fingerprint)
            self._embedder = self._checked(as_embedder(model, **settings))

    def embedder(self) -> EmbedderLike:
        """Return the embedder, loaded when it is first needed.

        Raises:
            IndexMismatchError: none was given, and the one that made the index cannot be had again.
        """
        with self._lock:
            if self._embedder is None:
                name = self._about.fingerprint.get("model")
                if not name:
                    raise IndexMismatchError(
                        f"{self._name}: made by a model without a name; give it: open(path, model=...)"
                    )
                from ..embedder import Embedder

                try:
                    embedder = Embedder(name, **_settings(self._about.fingerprint))
                except (SimCLRHubError, ValueError) as e:
                    raise IndexMismatchError(
                        f"{self._name}: the model that made it cannot be loaded: {e}; give it: open(path, model=...)"
                    ) from e
                self._embedder = self._checked(embedder)
            return self._embedder

    def _checked(self, embedder: EmbedderLike) -> EmbedderLike:
        """Return the embedder if its vectors are those of the index; its name and whitening do not matter."""
        made_by, given = self._about.fingerprint, dict(embedder.fingerprint)
        keys = (made_by.keys() | given.keys()) - {"model", "whitening"}
        different = sorted(key for key in keys if made_by.get(key) != given.get(key))
        if different or embedder.dim != self._about.dim:
            raise IndexMismatchError(
                f"{self._name}: made by {_tell(made_by, self._about.dim, different)}, but given "
                f"{_tell(given, embedder.dim, different)}; use the model that made it, or create another index"
            )
        return embedder


def is_embedder(model: Any) -> bool:
    """Tell whether it can embed as it is."""
    return all(hasattr(model, name) for name in ("dim", "fingerprint", "stream"))


def as_embedder(model: Any, **settings: Any) -> EmbedderLike:
    """Return an embedder without its whitening, which is the index's part; or make one of a model.

    Raises:
        TypeError: settings for an embedder that has its own.
    """
    if not is_embedder(model):
        from ..embedder import Embedder

        return Embedder(model, **settings)
    if settings:
        raise TypeError(f"{', '.join(settings)}: an embedder was given, which has its settings already")
    embedder: EmbedderLike = model.unwhitened() if "whitening" in model.fingerprint else model
    return embedder


def choose_whitening(model: Any, embedder: EmbedderLike, whiten: Whitening | bool | None) -> Whitening | None:
    """Choose what an index is whitened with.

    Args:
        model: as it was given; an embedder that whitens says with what.
        embedder: made of it by `as_embedder`.
        whiten: None for what comes with the checkpoint, if anything does; True for that; or with what.

    Raises:
        CheckpointError: nothing comes with it, but `whiten` is True; or what does is damaged.
        ValueError: a whitening of another model or layer.
    """
    from ..embedder import Embedder

    given = getattr(model, "whitening", None) if whiten is None or whiten is True else whiten
    if isinstance(given, Whitening):
        if isinstance(embedder, Embedder):
            embedder.check_whitening(given)
        elif len(given.mean) != embedder.dim:
            raise ValueError(f"a whitening of vectors of {len(given.mean)}, for an embedder of {embedder.dim}")
        return given
    if whiten is False or not isinstance(embedder, Embedder):
        return None
    return embedder.own_whitening() if whiten else embedder.checkpoint_whitening()


def _settings(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Embedder` that a fingerprint tells of."""
    return {
        "layer": fingerprint.get("layer", "h"),
        "normalize": fingerprint.get("normalized") == "yes",
        "dtype": fingerprint.get("precision", "float32"),
        "exact": fingerprint.get("preprocessing", "exact").endswith("exact"),
    }


def _tell(fingerprint: Mapping[str, Any], dim: int, keys: list[str]) -> str:
    """Tell a fingerprint's name, width and what differs, in one line."""
    parts = [f"dim {dim}", *(f"{key} {str(fingerprint.get(key))[:40]}" for key in keys)]
    return f"{fingerprint.get('model')} ({', '.join(parts)})"


def unit_vector(vector: np.ndarray) -> np.ndarray | None:
    """Scale a vector (D,) to length 1, float32; None if it is zero or not finite."""
    wide = vector.astype(np.float64)
    largest = np.abs(wide).max(initial=0)
    if not np.isfinite(largest) or largest == 0:
        return None
    wide /= largest  # so that no square overflows or vanishes
    unit: np.ndarray = (wide / np.linalg.norm(wide)).astype(np.float32)
    return unit
