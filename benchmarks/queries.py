"""Twenty photos of open-photos and the six nearest others of each, as one picture to look at: raw h, and whitened.

A frame is green where a match is of the query's class, red where it is not; below it stand the class and the cosine.
The photos are clothing-dataset-small (CC0) and GroceryStoreDataset (MIT; (c) 2019 Marcus Klasson).

Run: python benchmarks/queries.py --open-photos TAR_OR_FOLDER [--model DIR] [--seed 0] [--out docs]
"""

import argparse
import io
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from features import Photos
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from simclr_hub import embed
from simclr_hub._files import write_file
from simclr_hub.loading import load_whitening

QUERIES, MATCHES, COLUMNS = 20, 6, 2
SIDE, FRAME, TEXT, GAP = 84, 3, 22, 4
LIMIT = 220_000  # bytes of a page


def nearest(vectors: Tensor, queries: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find the best MATCHES other rows of each query and their cosines, both (Q, MATCHES)."""
    unit = F.normalize(vectors)
    cosines = unit[list(queries)] @ unit.T  # (Q, N)
    cosines[torch.arange(len(queries)), list(queries)] = -2  # the query's own file is left out
    scores, matches = cosines.topk(MATCHES)
    return matches, scores


def sheet(photos: Photos, queries: Sequence[int], matches: Tensor, scores: Tensor) -> Image.Image:
    """Queries in COLUMNS columns, each beside its matches."""
    cell = SIDE + 2 * FRAME + GAP
    lines = -(-len(queries) // COLUMNS)
    block = (1 + MATCHES) * cell + 4 * GAP
    page = Image.new("RGB", (COLUMNS * block, lines * (cell + TEXT)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(9)

    def show(i: int, x: int, y: int, colour: str, score: str) -> None:
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(photos.files[i]))).convert("RGB")
        page.paste(colour, (x, y, x + SIDE + 2 * FRAME, y + SIDE + 2 * FRAME))
        page.paste(ImageOps.fit(photo, (SIDE, SIDE)), (x + FRAME, y + FRAME))
        name = photos.classes[photos.labels[i]].partition("_")[2].replace("-", " ")
        draw.text((x, y + SIDE + 2 * FRAME), f"{name[:18]}\n{score}", fill="black", font=font, spacing=0)

    for n, query in enumerate(queries):
        x, y = (n // lines) * block, (n % lines) * (cell + TEXT)
        show(query, x, y, "black", "query")
        for k in range(MATCHES):
            match = int(matches[n, k])
            colour = "#009e73" if photos.labels[match] == photos.labels[query] else "#d5300e"
            show(match, x + (k + 1) * cell + 2 * GAP, y, colour, f"{scores[n, k]:.2f}")
    return page


def save(page: Image.Image, path: Path) -> None:
    """Save as a JPEG below LIMIT, of the best quality that allows it."""
    for quality in range(85, 20, -5):
        packed = io.BytesIO()
        page.save(packed, "jpeg", quality=quality, optimize=True)
        if packed.tell() < LIMIT:
            break
    write_file(path, lambda file: file.write(packed.getvalue()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-photos", required=True, type=Path, help="tar, or folder, of class folders")
    parser.add_argument("--model", help="a model directory or Hub id; the default checkpoint without it")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of queries")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the two pages")
    options = parser.parse_args()

    photos = Photos.load(options.open_photos)
    queries = sorted(random.Random(options.seed).sample(range(len(photos.files)), QUERIES))
    h = embed(photos.files, model=options.model)
    whitening = load_whitening(options.model)
    if whitening is None:
        parser.error(f"{options.model} has no whitening beside its weights")
    for name, vectors in (("before", h), ("after", whitening.apply(h))):
        matches, scores = nearest(torch.from_numpy(vectors), queries)
        right = photos.labels[matches] == photos.labels[queries][:, None]
        save(sheet(photos, queries, matches, scores), options.out / f"queries-{name}.jpg")
        print(f"{name}: {int(right.sum())} of {right.numel()} matches are of their query's class", flush=True)


if __name__ == "__main__":
    main()
