"""What type checkers must know of the lazy table of contents; `make check` types this file, nothing runs it."""

from typing import assert_type

import simclr_hub
from simclr_hub import Embedder, Match, SimilarityIndex, embed, load

assert_type(simclr_hub.SimilarityIndex.open("x"), SimilarityIndex)
assert_type(SimilarityIndex.create("x").search("y"), list[Match])
assert_type(Embedder(), simclr_hub.Embedder)
assert_type(load()[0], simclr_hub.SimCLRModel)
assert_type(embed("x").dtype.name, str)
