"""Copies of photos found again: recall by kind of edit and precision, beside perceptual hashes; time for many.

Photos: of open-photos the half that the default thresholds were not measured on (by the hash of the file). Each has
two copies, of different kinds, written as files and decoded again; kinds go round. All are compared with all others:

- ours: signatures and features of the checkpoint, `duplicates/grouping.py`, with the thresholds shipped with it.
- PHash: imagededup's, pairs within its default distance of 10 bits.
- PDQ: 256 bits, pairs within 31 bits, its authors' threshold; alone, and with each picture's eight orientations.

For each kind: the share of copies found as the same picture as their original. Precision: of the pairs told, the share
that are of one photo. A hash's pairs are counted between any two files, ours between the kept file and the others.

Run: python benchmarks/duplicates.py --open-photos TAR_OR_FOLDER [--distractors FOLDER [--distractor-count N]]
     python benchmarks/duplicates.py --many 100000
Peers: pip install imagededup pdqhash, else their columns are left out.
"""

import argparse
import hashlib
import io
import resource
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageOps

from simclr_hub.duplicates.calibrate import (
    border,
    brighten,
    contrast,
    crop,
    embed_all,
    is_for_calibration,
    resize,
    same_class,
    saturate,
    watermark,
)
from simclr_hub.duplicates.grouping import Grouping
from simclr_hub.duplicates.neighbours import likeness
from simclr_hub.duplicates.thresholds import Thresholds, load_thresholds
from simclr_hub.embedder import Embedder
from simclr_hub.images import is_image_name
from simclr_hub.signature import SIGNATURE_BYTES, as_rows, picture_signature

Edit = Callable[[Image.Image, Random], Image.Image]


def unchanged(image: Image.Image, draw: Random) -> Image.Image:
    """Return it as it is, for kinds that are only written in another format."""
    return image


def resized(factor: float) -> Edit:
    """Both sides times `factor`."""
    return lambda image, draw: resize(image, factor)


def cropped(share: float) -> Edit:
    """Cut `share` off either side, anywhere."""
    return lambda image, draw: crop(image, share, draw.random(), draw.random())


def framed(share: float) -> Edit:
    """Add a white or black frame."""
    return lambda image, draw: border(image, share, draw.choice(["white", "black"]))


def written_on(image: Image.Image, draw: Random) -> Image.Image:
    """Write a half transparent text over it."""
    return watermark(image, "www.example.org", draw.uniform(0.1, 0.2), draw.random(), draw.random())


#: Kind -> how a copy is made, and the format and quality in which it is written.
KINDS: dict[str, tuple[Edit, str, int]] = {
    **{f"JPEG, quality {quality}": (unchanged, "JPEG", quality) for quality in (95, 75, 50, 30)},
    "WebP, quality 75": (unchanged, "WEBP", 75),
    "AVIF, quality 50": (unchanged, "AVIF", 50),
    "HEIC, quality 50": (unchanged, "HEIF", 50),
    **{f"resized x {factor}": (resized(factor), "JPEG", 85) for factor in (0.25, 0.5, 2.0)},
    **{f"cropped by {round(100 * share)} %": (cropped(share), "JPEG", 85) for share in (0.05, 0.1, 0.2)},
    "darker x 0.6": (lambda image, draw: brighten(image, 0.6), "JPEG", 85),
    "brighter x 1.5": (lambda image, draw: brighten(image, 1.5), "JPEG", 85),
    "contrast x 0.6": (lambda image, draw: contrast(image, 0.6), "JPEG", 85),
    "contrast x 1.6": (lambda image, draw: contrast(image, 1.6), "JPEG", 85),
    "watermark": (written_on, "JPEG", 85),
    "mirrored": (lambda image, draw: ImageOps.mirror(image), "JPEG", 85),
    "grey": (lambda image, draw: saturate(image, 0), "JPEG", 85),
    "turned by 90 degrees": (lambda image, draw: image.rotate(draw.choice([90, 270]), expand=True), "JPEG", 85),
    **{f"border of {round(100 * share)} %": (framed(share), "JPEG", 85) for share in (0.05, 0.1)},
}


@dataclass
class Library:
    """Files as bytes, the photo each is of, and the kind of edit ("" for an original)."""

    files: list[bytes]
    photo: np.ndarray
    kind: list[str]
    classes: list[str] = field(default_factory=list)


def read_photos(source: Path) -> list[tuple[str, bytes]]:
    """Class and bytes of the photos of class folders, or of a tar of them, by name."""
    if source.is_dir():
        files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if is_image_name(path)}
    else:
        with tarfile.open(source) as tar:
            members = [member for member in tar if member.isfile() and is_image_name(member.name)]
            files = {member.name: file.read() for member in members if (file := tar.extractfile(member)) is not None}
    return [(name.split("/")[-2], files[name]) for name in sorted(files)]


def make_library(photos: Sequence[tuple[str, bytes]]) -> Library:
    """Each photo of the other half, and two copies of it."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    kinds = list(KINDS)
    chosen = [(name, data) for name, data in photos if not is_for_calibration(data)]
    library = Library([data for _, data in chosen], np.arange(len(chosen)), [""] * len(chosen))
    library.classes += [name for name, _ in chosen]
    owners = []
    for turn in range(2):
        for number, (_, data) in enumerate(chosen):
            kind = kinds[(number + turn * (len(kinds) // 2)) % len(kinds)]
            edit, format, quality = KINDS[kind]
            with Image.open(io.BytesIO(data)) as image:
                made = edit(image.convert("RGB"), Random(f"{turn} {number}"))
            buffer = io.BytesIO()
            made.save(buffer, format, quality=quality)
            library.files.append(buffer.getvalue())
            library.kind.append(kind)
            owners.append(number)
    library.photo = np.concatenate([library.photo, owners])
    return library


def our_pairs(vectors: np.ndarray, signatures: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Pairs (kept, other), originals rather kept."""
    grouping = Grouping(vectors, signatures, np.arange(len(vectors)), thresholds)
    pairs = [(star.kept, row) for star in grouping.same() for row, _ in star.others]
    return np.array(pairs, np.int64).reshape(-1, 2)


def hash_pairs(bits: np.ndarray, most: int, queries: np.ndarray | None = None) -> np.ndarray:
    """Pairs of rows whose bits (N, B) differ in at most `most`; queries (N, O, B) are all forms of each."""
    forms = bits[:, None] if queries is None else queries
    signs = 1 - 2 * bits.astype(np.float32)
    found = []
    for row in range(len(bits)):
        distances = (bits.shape[1] - (1 - 2 * forms[row].astype(np.float32)) @ signs.T).min(0) / 2
        others = np.flatnonzero(distances <= most)
        found.append(np.stack([np.full(len(others), row), others], 1)[others != row])
    pairs = np.unique(np.sort(np.concatenate(found), 1), axis=0)
    return pairs.reshape(-1, 2)


def peers(files: Sequence[bytes]) -> Iterator[tuple[str, np.ndarray, float]]:
    """Name, pairs, and seconds to hash, of each peer that is installed."""

    def pixels() -> Iterator[np.ndarray]:
        for data in files:
            with Image.open(io.BytesIO(data)) as image:
                yield np.array(image.convert("RGB"))

    try:
        from imagededup.methods import PHash
    except ImportError:
        print("imagededup is not installed")
    else:
        started, hasher = time.process_time(), PHash(verbose=False)
        hashes = [hasher.encode_image(image_array=image) for image in pixels()]
        seconds = time.process_time() - started
        bits = np.unpackbits(np.array([list(bytes.fromhex(h)) for h in hashes], np.uint8), axis=1)
        yield "PHash", hash_pairs(bits, 10), seconds
    try:
        import pdqhash
    except ImportError:
        print("pdqhash is not installed")
    else:
        started = time.process_time()
        bits = np.array([pdqhash.compute(image)[0] for image in pixels()], np.uint8)
        seconds = time.process_time() - started
        yield "PDQ", hash_pairs(bits, 31), seconds
        started = time.process_time()
        forms = np.array([pdqhash.compute_dihedral(image)[0] for image in pixels()], np.uint8)
        yield "PDQ, 8 orientations", hash_pairs(bits, 31, forms), time.process_time() - started


def judge(pairs: np.ndarray, library: Library) -> dict[str, float]:
    """Recall by kind, "precision", and the numbers of pairs."""
    one = library.photo[pairs[:, 0]] == library.photo[pairs[:, 1]]
    found = {(min(a, b), max(a, b)) for a, b in pairs.tolist()}
    hit: dict[str, list[bool]] = {}
    for row, kind in enumerate(library.kind):
        if kind:
            hit.setdefault(kind, []).append((int(library.photo[row]), row) in found)
    result = {kind: float(np.mean(hit[kind])) for kind in KINDS}
    result["all kinds"] = float(np.mean([one_hit for some in hit.values() for one_hit in some]))
    return result | {"precision": float(one.mean()), "pairs told": len(pairs), "of them wrong": int((~one).sum())}


def compare(options: argparse.Namespace) -> None:
    """Print the table of kinds."""
    library = make_library(read_photos(options.open_photos))
    number, total = len(library.classes), len(library.files)
    embedder = Embedder(options.model, runtime="torch")
    whitening = None if options.raw else embedder.checkpoint_whitening()
    told = {"whitening": whitening.sha256} if whitening else {}
    thresholds = load_thresholds(options.calibration, {**embedder.fingerprint, **told})
    if thresholds is None:
        raise SystemExit("no thresholds for this model: simclr-hub calibrate, then --calibration INDEX")
    found, vectors, signatures = embed_all(embedder, library.files)
    if len(found) != total:
        raise SystemExit(f"{total - len(found)} copies cannot be read")
    started = time.process_time()
    columns = {"ours": judge(our_pairs(vectors, signatures, thresholds), library)}
    print(f"{number} photos, {total - number} copies; ours: {time.process_time() - started:.1f} CPU s")
    for name, pairs, seconds in peers(library.files) if not options.no_peers else ():
        columns[name] = judge(pairs, library)
        print(f"{name}: {1e3 * seconds / total:.2f} ms a file with decoding")
    if options.distractors:
        images = distractors(options.distractors, options.distractor_count)
        _, more, marks = embed_all(embedder, images)
        started = time.process_time()
        pairs = our_pairs(np.concatenate([vectors, more]), np.concatenate([signatures, marks]), thresholds)
        name, own = f"ours, among {len(more):,} more", (pairs < total).all(1)
        print(f"{name}: {time.process_time() - started:.0f} CPU s; {(~own).sum()} pairs with or of them: ", end="")
        print([(a, b - total) if a < total else (a - total, b - total) for a, b in pairs[~own].tolist()])
        columns[name] = judge(pairs[own], library)
    print_table(columns)
    compared_by = whitening.apply(vectors[:number], normalize=True) if whitening else vectors[:number]
    pairs, scores = likeness(compared_by)
    threshold, labels = thresholds.similar(number), np.array(library.classes)
    for what, least in (
        ("similar", threshold),
        ("at 90 %", least_at(scores, labels[pairs[:, 0]] == labels[pairs[:, 1]])),
    ):
        above = pairs[scores >= least]
        shares = same_class(above, labels)
        right, share = 100 * shares["precision_same_class"], 100 * shares["recall_same_class"]
        print(f"{what}: from {least:.4f} {len(above)} pairs, {right:.1f} % of one class, {share:.2f} % of all such")


def least_at(scores: np.ndarray, right: np.ndarray, precision: float = 0.9) -> float:
    """Return the lowest score above which this share of the pairs is right."""
    order = np.argsort(-scores)
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(shares >= precision)
    return float(scores[order[enough[-1]]]) if len(enough) else np.inf


def print_table(columns: dict[str, dict[str, float]]) -> None:
    """Shares in percent, numbers as they are."""
    print(f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for row in [*KINDS, "all kinds", "precision"]:
        print(f"| {row} | {' | '.join(f'{100 * column[row]:.1f}' for column in columns.values())} |")
    for row in ("pairs told", "of them wrong"):
        print(f"| {row} | {' | '.join(f'{column[row]:,.0f}' for column in columns.values())} |")


def distractors(folder: Path, number: int) -> list[bytes]:
    """Images of a data set on disk, each content once."""
    import datasets

    data = datasets.load_dataset(str(folder), split="train").cast_column("image", datasets.Image(decode=False))
    step = max(1, len(data) // number)
    images = [data[i]["image"]["bytes"] for i in range(0, len(data), step)][:number]
    return list({hashlib.sha256(image).digest(): image for image in images}.values())


def many(number: int) -> None:
    """Time and memory for synthetic contents: clusters of vectors, smooth random pictures, every tenth a copy."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((2000, 256), np.float32)
    vectors = centres[random.integers(0, 2000, number)] + random.standard_normal((number, 256), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    import torch

    signatures = np.zeros((number, SIGNATURE_BYTES), np.uint8)
    for row in range(number):
        low = torch.from_numpy(random.random((1, 3, 6, 6), np.float32))
        picture = torch.nn.functional.interpolate(low, (48, 48), mode="bicubic").clamp(0, 1)[0]
        signatures[row] = as_rows([picture_signature(picture.numpy())])[0]
    originals = np.arange(0, number - 1, 10)
    signatures[originals + 1] = signatures[originals]
    noise = random.standard_normal((len(originals), 256), np.float32) * 0.005
    vectors[originals + 1] = vectors[originals] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    grouping = Grouping(vectors, signatures, np.arange(number), Thresholds({}, 1, 0.97, [(1, 0.6)]))
    same = grouping.same()
    similar = grouping.similar(same)
    found = {(star.kept, row) for star in same for row, _ in star.others}
    wanted = set(zip(originals.tolist(), (originals + 1).tolist(), strict=True))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{number:,} contents: {time.perf_counter() - started:.0f} s, {time.process_time() - cpu:.0f} CPU s; "
        f"peak memory {before / 2**10:,.0f} MiB before (vectors and signatures "
        f"{(vectors.nbytes + signatures.nbytes) / 2**20:,.0f} MiB), {after / 2**10:,.0f} MiB after; "
        f"{len(found & wanted):,} of {len(wanted):,} copies found, {len(found - wanted):,} other pairs, "
        f"{len(similar):,} similar groups"
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-photos", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--calibration", type=Path, default=Path("."), help="folder of another model's thresholds")
    parser.add_argument("--raw", action="store_true", help="without the checkpoint's whitening")
    parser.add_argument("--distractors", type=Path)
    parser.add_argument("--distractor-count", type=int, default=20_000)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--many", type=int, help="so many synthetic contents")
    options = parser.parse_args()
    if options.open_photos:
        compare(options)
    if options.many:
        many(options.many)


if __name__ == "__main__":
    main()
