"""How good features are for finding things of the same class, beside what needs no training at all.

- kNN: Tiny ImageNet, 10,000 validation images, the 20 nearest of a bank of training images by cosine, plain majority
  vote (nearer neighbours break ties); top-1 in percent. Banks: all 75,000, and the first 25,000.
- kNN by few labels: the vote of the 1, 5 or 20 nearest of 1, 5 or 20 labelled images a class, drawn at random, on Tiny
  ImageNet, on open-photos (there all other photos are looked up) and on its clothes alone.
- P@1, P@5: open-photos, leave one out: of the nearest 1 or 5 other photos by cosine, the share of the same class, in
  percent; also for each class, for the card's section on where it fails.

Rows: the checkpoint; the same architecture with random weights; raw pixels, the central square averaged to 32 x 32 and
to 8 x 8, less the image's mean (without that all cosines are near 1, and the numbers are lower); and a colour
histogram, 8 x 8 x 8 bins, square root. "whitened": by what the checkpoint brings, else by what is learnt on 10,000
training images without their labels. After +-: the standard deviation over draws of labels, and over random networks.

The networks' features are kept in --cache, by their fingerprint and the images' content, and computed once.

Run: python benchmarks/features.py --tiny-imagenet FOLDER --open-photos TAR_OR_FOLDER [--model DIR] [--size PX]
After a new default checkpoint: with --record, then python scripts/render_cards.py
"""

import argparse
import hashlib
import json
import re
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_hub import Embedder, SimCLRModel, load
from simclr_hub._files import write_file
from simclr_hub.checkpoints.catalog import choices
from simclr_hub.embedder import Failure
from simclr_hub.images import is_image_name, load_image
from simclr_hub.loading import load_whitening
from simclr_hub.progress import progress_bar
from simclr_hub.training.data import ImageArray, open_rows
from simclr_hub.training.protocols import knn_predictions, precision_at
from simclr_hub.training.stage import weights_sha256
from simclr_hub.training.trained_cards import DEFAULT_DIRECTORY
from simclr_hub.whitening import IMAGES, SHRINKAGE, Whitening

BANK = 25_000
LABELS, DRAWS = (1, 5, 20), 10  # labelled images a class, and how often they are drawn
SIDE = 64  # of Tiny ImageNet's images
ROWS = ("model", "random", "pixels", "thumbnail", "histogram")
COMMAND = "python benchmarks/features.py --tiny-imagenet FOLDER --open-photos open-photos-128.tar"
#: Kinds of groceries that differ in little: the group, and what their names have in them.
FINE = {
    "apples": ("Golden-Delicious", "Granny-Smith", "Pink-Lady", "Red-Delicious", "Royal-Gala"),
    "pears": ("Anjou", "Conference", "Kaiser"),
    "melons": ("Cantaloupe", "Melon", "Watermelon"),
    "tomatoes": ("Tomato",),
    "potatoes": ("Potato",),
    "yoghurts": ("ghurt", "Sour-Cream"),
    "milks": ("Milk",),
    "juices": ("Juice", "Tropicana"),
}
#: Kinds of Tiny ImageNet's classes: from which WordNet number to which.
KINDS = {
    "landscapes": (9_100_000, 9_500_000),
    "food": (7_500_000, 8_000_000),
    "animals": (1_300_000, 2_600_000),
    "of them breeds of cats and dogs": (2_085_000, 2_124_100),
    "things made by people": (2_600_000, 4_700_000),
}
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- begin: benchmarks/features.py --record -->", "<!-- end -->"


@dataclass
class Photos:
    """Photos in class folders: encoded, with classes (N,) and their names."""

    files: list[bytes]
    labels: Tensor
    classes: list[str]

    @classmethod
    def load(cls, source: Path) -> "Photos":
        """Load a tar, or a folder, of class folders, in the order of their names."""
        if source.is_dir():
            paths = [path for path in source.rglob("*") if is_image_name(path)]
            files = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
        else:
            with tarfile.open(source) as tar:
                members = [m for m in tar if m.isfile() and is_image_name(m.name)]
                files = {m.name: file.read() for m in members if (file := tar.extractfile(m)) is not None}
        names = sorted(files)
        folders = [name.split("/")[-2] for name in names]
        classes = sorted(set(folders))
        return cls([files[name] for name in names], torch.tensor([classes.index(f) for f in folders]), classes)


@dataclass
class Data:
    """All that is measured on."""

    train: ImageArray
    validation: ImageArray
    classes: list[str]  # of Tiny ImageNet
    photos: Photos

    @cached_property
    def clothes(self) -> Tensor:
        """Tell which photos show clothes, (N,)."""
        return torch.tensor([name.startswith("clothing") for name in self.photos.classes])[self.photos.labels]

    @cached_property
    def groups(self) -> Tensor:
        """Group in FINE of each photo's class, (N,); -1 for none."""
        of_class = [
            next((g for g, parts in enumerate(FINE.values()) if any(part in name for part in parts)), -1)
            for name in self.photos.classes
        ]
        return torch.tensor(of_class)[self.photos.labels]

    @cached_property
    def key(self) -> str:
        """Hash the images' content."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self.train.images, self.validation.images):
            for start in range(0, len(array), 1000):
                digest.update(np.ascontiguousarray(array[start : start + 1000]).data)
        for photo in self.photos.files:
            digest.update(hashlib.blake2b(photo).digest())
        return digest.hexdigest()


class Features(NamedTuple):
    """Of the bank (75,000, D), the queries (10,000, D) and open-photos (N, D)."""

    bank: Tensor
    queries: Tensor
    photos: Tensor


Extract = Callable[[Iterable[Any], int], Tensor]


def extracted(extract: Extract, data: Data) -> Features:
    def tiny(images: ImageArray) -> Tensor:
        return extract((images.image(i) for i in range(len(images))), len(images))

    return Features(tiny(data.train), tiny(data.validation), extract(data.photos.files, len(data.photos.files)))


def network(embedder: Embedder, data: Data, cache: Path) -> Features:
    """Return the encoder's h, from the cache if it was computed before."""

    def h(images: Iterable[Any], n: int) -> Tensor:
        rows = np.empty((n, embedder.dim), np.float32)
        with progress_bar("embedding", n) as advance:
            for item in embedder.stream(images):
                if isinstance(item, Failure):
                    raise item.error
                rows[item.position] = item.vector
                advance(1)
        return torch.from_numpy(rows)

    made_by = {key: value for key, value in embedder.fingerprint.items() if key != "model"}
    name = hashlib.blake2b(json.dumps([made_by, data.key]).encode(), digest_size=8).hexdigest()
    kept = cache / "features" / f"{name}.npz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: array.numpy() for name, array in extracted(h, data)._asdict().items()}
        write_file(kept, lambda file: np.savez(file, **arrays))
    with np.load(kept) as arrays:
        return Features(**{name: torch.from_numpy(arrays[name]) for name in Features._fields})


def pixels(side: int) -> Extract:
    """Average the central square of each image to side x side, less its mean, (N, 3 side^2)."""

    def one(image: Any) -> Tensor:
        x = torch.from_numpy(load_image(image).pixels).float() / 255  # (3, H, W)
        square = min(x.shape[1:])
        top, left = (x.shape[1] - square) // 2, (x.shape[2] - square) // 2
        small = F.adaptive_avg_pool2d(x[:, top : top + square, left : left + square], side).flatten()
        return small - small.mean()

    return lambda images, n: torch.stack([one(image) for image in images])


def histogram(images: Iterable[Any], n: int) -> Tensor:
    """Square roots of the shares of 8 x 8 x 8 colours, (N, 512)."""

    def one(image: Any) -> Tensor:
        r, g, b = torch.from_numpy(load_image(image).pixels // 32).long().flatten(1)
        counts = torch.bincount(r * 64 + g * 8 + b, minlength=512)
        return (counts / counts.sum()).sqrt()

    return torch.stack([one(image) for image in images])


def whitened(vectors: Features, whitening: Whitening | None = None) -> Features:
    """By what a checkpoint brings, else as learnt on IMAGES of the bank, evenly spread over it."""
    if whitening is None:
        spread = torch.linspace(0, len(vectors.bank) - 1, min(IMAGES, len(vectors.bank))).long()
        whitening = Whitening.learn(vectors.bank[spread].numpy(), shrinkage=SHRINKAGE, learnt_from="the bank")
    return Features(*(torch.from_numpy(whitening.apply(part.numpy())) for part in vectors))


def drawn(labels: Tensor, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of `per_class` of each class, drawn at random, and of the others."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[labels[order] == c][:per_class] for c in labels.unique()])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return chosen, rest.nonzero()[:, 0]


@dataclass
class Row:
    """One line of the tables: every measure's values, one for each network or draw."""

    key: str  # of ROWS, perhaps with ", whitened"
    name: str
    dim: int
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, vectors: Features, data: Data) -> None:
        """Measure these too."""
        bank_labels, labels = (
            torch.tensor(data.train.labels)[: len(vectors.bank)],
            torch.tensor(data.validation.labels),
        )
        sizes = (min(BANK, len(bank_labels)), len(bank_labels))
        right = (knn_predictions(vectors.queries, vectors.bank, bank_labels, sizes) == labels).float()
        found = {"knn_25k": right[0].mean()}
        if len(vectors.bank) == len(data.train):
            found["knn_all"] = right[1].mean()
            found |= {f"knn_all {name}": right[1, labels == c].mean() for c, name in enumerate(data.classes)}
        photos, classes = vectors.photos, data.photos.labels
        p1, p5 = (precision_at(photos, classes, k) for k in (1, 5))  # (N,)
        found |= {"p_at_1": p1.mean(), "p_at_5": p5.mean()}
        for c, name in enumerate(data.photos.classes):
            found[f"p_at_5 {name}"] = p5[classes == c].mean()
        fine = data.groups >= 0
        in_group = precision_at(photos, torch.where(fine, data.groups, -1 - classes), 5)
        for name, value, of in (
            ("clothes", p5, data.clothes),
            ("groceries", p5, ~data.clothes),
            ("fine kinds", p5, fine),
            ("groups", in_group, fine),
        ):
            found[f"p_at_5, {name}"] = value[of].mean()
        self.add_values(found)
        worn = data.clothes.nonzero()[:, 0]
        every = torch.arange(len(classes))
        for n, seed in ((n, seed) for n in LABELS for seed in range(DRAWS)):
            chosen, _ = drawn(bank_labels, n, seed)
            few = knn_predictions(vectors.queries, vectors.bank[chosen], bank_labels[chosen], neighbours=n) == labels
            found = {f"tiny_imagenet_{n}": few.float().mean()}
            for kind, of in (("open_photos", every), ("clothes", worn)):
                chosen, rest = (of[part] for part in drawn(classes[of], n, seed))
                few = knn_predictions(photos[rest], photos[chosen], classes[chosen], neighbours=n) == classes[rest]
                found[f"{kind}_{n}"] = few.float().mean()
            self.add_values(found)

    def add_values(self, found: Mapping[str, Tensor]) -> None:
        """Shares, as percent."""
        for measure, value in found.items():
            self.values.setdefault(measure, []).append(100 * float(value))

    def mean(self, measure: str) -> float:
        """Over networks and draws."""
        return statistics.mean(self.values[measure])

    def cell(self, measure: str) -> str:
        """Mean and, of several values, their standard deviation."""
        values = self.values[measure]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    def as_json(self) -> dict[str, Any]:
        """Every measure's mean and, of several values, standard deviation."""
        spread = {k: statistics.stdev(v) for k, v in self.values.items() if len(v) > 1}
        return {
            "key": self.key,
            "features": self.name,
            "dim": self.dim,
            "mean": {k: round(statistics.mean(v), 2) for k, v in self.values.items()},
            "standard_deviation": {k: round(v, 2) for k, v in spread.items()},
        }


def measured(
    wanted: Sequence[str], data: Data, name: str | None, size: int | None, seeds: int, cache: Path
) -> Iterator[Row]:
    trained, _ = load(name)
    trained.config.image_size = size or trained.config.image_size
    at = f"at {trained.config.image_size} px"

    def of_model() -> Iterator[tuple[Features, Whitening | None]]:
        embedder = Embedder(trained if size else name)  # by its name with its own processor
        yield network(embedder, data, cache), None if size else load_whitening(name)

    def of_random() -> Iterator[tuple[Features, None]]:
        labels = None if data.train.labels is None else data.train.labels[:BANK]
        small = replace(data, train=ImageArray(data.train.images[:BANK], labels))
        for seed in range(seeds):  # all but the first with the small bank alone
            torch.manual_seed(seed)
            yield network(Embedder(SimCLRModel(trained.config)), small if seed else data, cache), None

    def of(extract: Extract) -> Callable[[], Iterator[tuple[Features, None]]]:
        return lambda: iter([(extracted(extract, data), None)])

    makers: dict[str, tuple[str, Callable[[], Iterator[tuple[Features, Whitening | None]]]]] = {
        "model": (f"{name or 'default checkpoint'}, {at}", of_model),
        "random": (f"same network, random weights ({seeds} seeds), {at}", of_random),
        "pixels": ("raw pixels, 32 x 32", of(pixels(32))),
        "thumbnail": ("raw pixels, 8 x 8", of(pixels(8))),
        "histogram": ("colour histogram, 512 bins, square root", of(histogram)),
    }
    for key in wanted:
        title, make = makers[key]
        rows: list[Row] = []
        for vectors, whitening in make():
            both = {"": vectors}
            if key not in ("pixels", "thumbnail"):
                both[", whitened"] = whitened(vectors, whitening)
            rows = rows or [Row(key + how, title + how, part.bank.shape[1]) for how, part in both.items()]
            for row, part in zip(rows, both.values(), strict=True):
                row.add(part, data)
        yield from rows


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def extremes(row: Row, measure: str, classes: Sequence[str], n: int) -> tuple[list[str], list[str]]:
    """Return the n classes with the lowest values, lowest first, and the n with the highest, highest first."""
    order = sorted(classes, key=lambda name: row.mean(f"{measure} {name}"))
    return order[:n], order[::-1][:n]


def tables(rows: Sequence[Row], data: Data) -> str:
    """Render what is found; kNN by few labels; and the classes that the checkpoint finds worst and best."""
    whole = f"kNN, bank {len(data.train):,}"
    measures = {"knn_all": whole, "knn_25k": f"kNN, bank {BANK:,}", "p_at_1": "P@1", "p_at_5": "P@5"}
    finding = table(
        ["features", "dimensions", *measures.values()],
        ([row.name, str(row.dim), *(row.cell(m) for m in measures)] for row in rows),
    )
    kinds = {"tiny_imagenet": "Tiny ImageNet", "open_photos": "open-photos", "clothes": "clothes"}
    few = {f"{kind}_{n}": f"{name}, {n}" for kind, name in kinds.items() for n in LABELS}
    labels = table(
        ["features, labels a class", *few.values()], ([row.name, *(row.cell(m) for m in few)] for row in rows)
    )
    by = next((row for row in rows if row.key == "model, whitened"), rows[0])
    parts = ("clothes", "groceries", "fine kinds", "groups")
    lines = [[name, *(row.cell(f"p_at_5, {name}") for row in rows)] for name in parts]
    for measure, classes in (("p_at_5", data.photos.classes), ("knn_all", data.classes)):
        worst, best = extremes(by, measure, classes, 8)
        lines += [[name, *(row.cell(f"{measure} {name}") for row in rows)] for name in [*worst, *best[::-1]]]
    return "\n\n".join([finding, labels, table(["class", *(row.name for row in rows)], lines)])


def limits(row: Row, thumbnail: Row, weights: int, data: Data) -> list[str]:
    """Where a checkpoint fails, in sentences for its card.

    Args:
        row: the checkpoint's, as an index compares it.
        thumbnail: of the pixels that need no network.
        weights: bytes of the checkpoint.
        data: what was measured on.
    """

    def listed(measure: str, names: Sequence[str]) -> str:
        told = (re.sub(r"^(clothing_|grocery_|n\d{8} )", "", name).replace("-", " ") for name in names)
        return ", ".join(f"{t} ({row.mean(f'{measure} {name}'):.0f})" for t, name in zip(told, names, strict=True))

    numbers = {name: int(name[1:9]) for name in data.classes if re.match(r"n\d{8} ", name)}
    kinds = {
        kind: [row.mean(f"knn_all {name}") for name, number in numbers.items() if low <= number < high]
        for kind, (low, high) in KINDS.items()
    }
    means = ", ".join(f"{kind} {statistics.mean(values):.0f}" for kind, values in kinds.items() if values)
    worst, best = extremes(row, "p_at_5", data.photos.classes, 6)
    worst_things, best_things = extremes(row, "knn_all", data.classes, 8)
    official = next(c for c in choices("linear") if c.name == "simclr-v2-r50-sk")
    return [
        f"**Clothes.** Of the five nearest photos of a piece of clothing {row.mean('p_at_5, clothes'):.0f} % are of "
        f"its kind; by a thumbnail of 8 x 8 pixels {thumbnail.mean('p_at_5, clothes'):.0f} % are. (Of a grocery: "
        f"{row.mean('p_at_5, groceries'):.0f} and {thumbnail.mean('p_at_5, groceries'):.0f} %.) With five labelled "
        f"photos of each of ten kinds {row.mean('clothes_5'):.0f} % of the others are named right, by the thumbnail "
        f"{thumbnail.mean('clothes_5'):.0f} %, by guessing 10 %.",
        f"**Fine kinds.** Of the five nearest photos of an apple, a pear, a melon, a tomato, a potato, or a carton of "
        f"juice, milk or yoghurt {row.mean('p_at_5, groups'):.0f} % show one, and "
        f"{row.mean('p_at_5, fine kinds'):.0f} % the same sort or brand of it.",
        f"**Worst** of the {len(data.photos.classes)} kinds of open-photos, P@5 in percent: "
        f"{listed('p_at_5', worst)}. Best: {listed('p_at_5', best)}.",
        f"**By kind of thing**, Tiny ImageNet's {len(data.classes)} classes, kNN in percent: {means}. Worst: "
        f"{listed('knn_all', worst_things)}. Best: {listed('knn_all', best_things)}.",
        f"**Instead**, `{official.name}` (74.6 % on ImageNet with a linear classifier, published) takes "
        f"{1000 / official.images_per_second / 60:.1f} minutes of one core for 1,000 photos, "
        f"{official.parameters * 4 / 1e6:.0f} MB of encoder weights (this checkpoint: {weights / 1e6:.1f} MB) and "
        f"{official.hidden_size * 4 / 1000:.1f} KB a photo in the index (this: {row.dim * 4 / 1000:.1f} KB).",
    ]


def record(directory: Path, rows: Sequence[Row], data: Data, size: int) -> None:
    """Write the numbers, and where the checkpoint fails, into its results.json; the default's also into the README."""
    path = directory / "results.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    by_key = {row.key: row for row in rows}
    raw, white = by_key["model"], by_key["model, whitened"]
    tiny = f"Tiny ImageNet, {len(data.validation):,} validation images, at {size} px"
    open_photos = (
        f"open-photos, {len(data.photos.files):,} photos of clothes and groceries in "
        f"{len(data.photos.classes)} classes, at {size} px"
    )
    measures = {
        "knn_all": (f"accuracy of 20 nearest neighbours (%), bank of {len(data.train):,} images", tiny),
        "knn_25k": (f"accuracy of 20 nearest neighbours (%), bank of {BANK:,} images", tiny),
        "p_at_1": ("precision at 1 (%), leave one out", open_photos),
        "p_at_5": ("precision at 5 (%), leave one out", open_photos),
    }
    known["results"] = [
        {"value": round(row.mean(key), 1), "measure": f"{measure}, {how}", "dataset": dataset, "command": COMMAND}
        for row, how in ((raw, "h as it is"), (white, "whitened, as an index does"))
        for key, (measure, dataset) in measures.items()
    ]
    known["weights"] = weights_sha256(directory)
    known["limits"] = limits(white, by_key["thumbnail"], (directory / "model.safetensors").stat().st_size, data)
    text = json.dumps(known, indent=2, ensure_ascii=False) + "\n"
    write_file(path, lambda file: file.write(text.encode()))
    if directory == DEFAULT_DIRECTORY:
        before, rest = README.read_text(encoding="utf-8").split(BEGIN)
        told = "".join(f"- {line}\n" for line in known["limits"])
        page = f"{before}{BEGIN}\n{told}{END}{rest.partition(END)[2]}"
        write_file(README, lambda file: file.write(page.encode()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-imagenet", required=True, help="folder of parquet files or class folders")
    parser.add_argument("--open-photos", required=True, type=Path, help="tar, or folder, of class folders")
    parser.add_argument("--model", help="a SimCLRModel directory or Hub id; the default checkpoint without it")
    parser.add_argument(
        "--size", type=int, help="side in pixels of the model's input; the checkpoint's own without it"
    )
    parser.add_argument("--seeds", type=int, default=3, help="random networks")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/benchmarks"), help="for decoded images and networks' features"
    )
    parser.add_argument("--only", action="append", choices=ROWS)
    parser.add_argument("--record", action="store_true", help="write the numbers into the model's results.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    wanted = options.only or ROWS
    if options.record and (options.size or not {"model", "thumbnail"} <= set(wanted)):
        parser.error("--record needs the rows model and thumbnail, at the checkpoint's own size")
    directory = Path(options.model) if options.model else DEFAULT_DIRECTORY
    if options.record and not (directory / "results.json").is_file():
        parser.error(f"--record: no results.json in {directory}")

    train, validation = (
        ImageArray.load(options.tiny_imagenet, split, SIDE, options.cache) for split in ("train", "validation")
    )
    classes = open_rows(options.tiny_imagenet, "validation").classes
    data = Data(train, validation, classes, Photos.load(options.open_photos))
    rows: list[Row] = []
    started = time.monotonic()
    for row in measured(wanted, data, options.model, options.size, options.seeds, options.cache):
        rows.append(row)
        print(f"{time.monotonic() - started:.0f} s: {row.name}", file=sys.stderr, flush=True)
    if options.record:
        record(directory, rows, data, load(options.model)[0].config.image_size)
    if options.json:
        sizes = {"tiny_imagenet": [len(train), len(validation)], "open_photos": len(data.photos.files)}
        print(json.dumps({**sizes, "rows": [row.as_json() for row in rows]}, indent=1))
    else:
        print(tables(rows, data))


if __name__ == "__main__":
    main()
