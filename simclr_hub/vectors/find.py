"""Search a server with a photo or a vector, through the model that made what is there."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import VectorServerError
from ..index.maker import Maker, unit_vector
from ..index.search.find import Match
from .conditions import compile_where
from .rows import image_id, path_bytes
from .server import Description, VectorServer


class Matches(NamedTuple):
    """Hold the images that were found, best first, and whether they were compared with all that meet the conditions.

    If not, they are of the true nearest on average the share that `recall` tells, as it was measured.
    """

    matches: list[Match]
    exact: bool
    recall: float


def search(
    server: VectorServer,
    query: Any,
    k: int = 10,
    *,
    where: Mapping[str, Any] | None = None,
    with_self: bool = False,
    model: Any = None,
) -> Matches:
    """Find the images that are most similar to a query; every file is a match, as with an index's `all_copies`.

    Args:
        server: where.
        query: an image as `load_image` takes it, or a vector (D,), as the model gives it or as the server has it.
        k: how many.
        where: as for `SimilarityIndex.search`, of `server.COLUMNS`.
        with_self: also find the query's own file.
        model: what made the vectors, if it is not to be had by its name: an embedder, or what `Embedder` takes.

    Raises:
        VectorServerError: nothing was loaded there.
        ValueError: a condition or a vector that cannot be compared; k below 1.
        ImageError: an image that cannot be used.
        IndexMismatchError: the model is not the one that made the vectors.
    """
    if k < 1:
        raise ValueError(f"k={k}: give a number from 1 on")
    conditions = compile_where(where)
    description = server.describe()
    if description is None:
        raise VectorServerError(f"{server}: nothing was loaded there; run: simclr-hub vectors load PARTS URL")
    vector = query_vector(query, description, str(server), model)
    own: set[bytes] = set()
    if not with_self and isinstance(query, (str, os.PathLike)):
        own = {image_id(os.fsencode(path)) for path in (os.path.abspath(query), os.path.realpath(query))}
    found = server.search(vector, k + len(own), conditions)
    hits = [hit for hit in found.hits if hit.id not in own][:k]
    matches = [
        Match(
            os.fsdecode(path_bytes(hit.path)),
            hit.score,
            {name: value for name, value in hit.values.items() if value is not None},
            content_hash=hit.content_hash,
        )
        for hit in hits
    ]
    return Matches(matches, found.exact, description.setting.recall if description.setting else 1.0)


def query_vector(query: Any, description: Description, name: str, model: Any = None) -> np.ndarray:
    """Return what a server compares for a query (D,), of length 1; with the errors of `search`."""
    whitening, about = description.whitening, description.about
    if isinstance(query, np.ndarray) and query.ndim == 1:
        vector = unit_vector(query)
        if vector is None:
            raise ValueError("a query vector that is zero or not finite has no direction to compare")
        if len(vector) == description.dim and whitening:
            return vector
        if len(vector) != about.dim:
            raise ValueError(f"a query vector of {len(vector)} numbers; {name} holds vectors of {description.dim}")
    else:
        from ..embedder import Failure

        (item,) = Maker(about, name, model).embedder().stream([query])
        if isinstance(item, Failure):
            raise item.error
        vector = unit_vector(item.vector)
        if vector is None:
            raise ValueError("its features are zero or not finite")
    return whitening.apply(vector[None], normalize=True)[0] if whitening else vector
