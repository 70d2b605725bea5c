"""How duplicates' time and memory grow where nearly everything hangs together, which is where grouping gets slow.

Each case is a collection of so many contents, as signatures and vectors of 256 numbers:

- copies: one picture, re-encoded and resized in so many ways: each signature is off by up to a level a cell.
- two pictures: half of them are copies of the one, half of the other.
- blank: blank pages, of which no two were encoded alike: white or a level darker, in twelve proportions.
- chain: frames of a slow pan over a panorama: each agrees with its neighbours, not with those farther on.
- bursts: twelve shots of each scene, alike but for something that moves, each with a re-encoded copy.
- different: copies, of which a person called 200 pairs different.

Right are: one group of copies, two of two pictures, one for each proportion of blank pages.

Run: python benchmarks/groups.py [--sizes 2000 6000 20000] [--cases copies chain]
Every row is a process of its own, with one thread. Linux, for the memory's peak.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from simclr_hub.duplicates.grouping import Grouping
from simclr_hub.duplicates.thresholds import Thresholds
from simclr_hub.signature import SIGNATURE_BYTES, as_rows, picture_signature

_HEAD = 5  # bytes of a signature before its cells
Case = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def scene(random: np.random.Generator, width: int = 6, pixels: int = 60) -> torch.Tensor:
    """Draw a smooth random picture, uint8 (3, 60, pixels)."""
    coarse = torch.from_numpy(random.random((1, 3, 6, width), np.float32))
    return (torch.nn.functional.interpolate(coarse, (60, pixels), mode="bicubic")[0].clamp(0, 1) * 255).byte()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1."""
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def near(vectors: np.ndarray, random: np.random.Generator, by: float = 0.01) -> np.ndarray:
    """Return each of them a little off."""
    return unit(vectors + by * random.standard_normal(vectors.shape, np.float32))


def reencoded(signatures: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return signatures with every cell off by a little."""
    noise = random.integers(-1, 2, (len(signatures), SIGNATURE_BYTES - _HEAD))
    result = signatures.copy()
    result[:, _HEAD:] = (signatures[:, _HEAD:] + noise).clip(0, 255)
    return result


def copies(number: int, random: np.random.Generator, pictures: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and signatures of copies of so many pictures, which come in turn."""
    signatures = as_rows([picture_signature(scene(random).numpy()) for _ in range(pictures)])
    vectors = unit(random.standard_normal((pictures, 256), np.float32))
    which = np.arange(number) % pictures
    return near(vectors[which], random), reencoded(signatures[which], random)


def blank(number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and signatures of pages of one colour."""
    pages = [
        picture_signature(torch.full((3, round(400 * 1.1**proportion), 600), 255 - level, dtype=torch.uint8).numpy())
        for proportion in range(12)
        for level in range(2)
    ]
    vectors = np.repeat(unit(random.standard_normal((1, 256), np.float32)), number, 0)
    return near(vectors, random, 1e-4), as_rows(pages)[random.integers(0, len(pages), number)]


def chain(number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and signatures of the frames of a pan."""
    width, shown = 2000, 200  # a frame is half a percent farther than the one before
    signatures = []
    panorama = torch.empty(0)
    for frame in range(number):
        at = frame % width
        if at == 0:  # the next one begins where the last one ends
            fresh = scene(random, 66, width + shown)
            panorama = torch.cat([panorama[..., width:], fresh[..., shown:]], -1) if frame else fresh
        signatures.append(picture_signature(panorama[..., at : at + shown].numpy()))
    steps = np.arange(number, dtype=np.float32) / 20
    phases = unit(random.standard_normal((64, 2), np.float32)) * np.sqrt(np.arange(1, 65, dtype=np.float32))[:, None]
    angles = steps[:, None] * (phases[:, 0] % 1 + 0.1)
    return unit(np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)), as_rows(signatures)


def bursts(number: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and signatures of shots of which twelve and a copy of each are of one scene."""
    signatures: list[bytes] = []
    vectors: list[np.ndarray] = []
    while len(signatures) < number:
        picture, vector = scene(random), random.standard_normal(256).astype(np.float32)
        for _ in range(12):
            shot = picture.clone()
            x, y = random.integers(0, 48, 2)
            shot[:, y : y + 12, x : x + 12] = int(random.integers(0, 256))
            signatures += [picture_signature(shot.numpy())] * 2
            vectors += [vector] * 2
    rows = as_rows(signatures[:number]).copy()
    rows[1::2] = reencoded(rows[1::2], random)
    return near(unit(np.array(vectors[:number])), random), rows


CASES: dict[str, Case] = {
    "copies": copies,
    "two pictures": lambda number, random: copies(number, random, 2),
    "blank": blank,
    "chain": chain,
    "bursts": bursts,
    "different": copies,
}


def memory() -> int:
    """Peak of this process, in KiB."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))


def measure(name: str, number: int) -> None:
    """Print a row of the table."""
    random = np.random.default_rng(0)
    vectors, signatures = CASES[name](number, random)
    apart = set()
    if name == "different":
        pairs = np.sort(random.choice(number, (200, 2), replace=False), 1)
        apart = {(int(a), int(b)) for a, b in pairs}
    rank = random.permutation(number)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory()
    started = time.process_time()
    grouping = Grouping(vectors, signatures, rank, Thresholds({}, 1, 0.97, [(1, 0.6)]), apart)
    same = grouping.same()
    similar = grouping.similar(same)
    seconds = time.process_time() - started
    grown = (memory() - before) / 2**10
    sizes = sorted((1 + len(star.others) for star in same), reverse=True)
    print(
        f"| {name} | {number:,} | {seconds:.0f} | {grown:,.0f} | {len(same):,} | {max(sizes, default=0):,} | "
        f"{number - sum(sizes):,} | {len(similar):,} |",
        flush=True,
    )


def main() -> None:
    """Measure each case at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 6000, 20_000])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--here", action="store_true", help="in this process: one case and size")
    options = parser.parse_args()
    if options.here:
        torch.set_num_threads(1)
        measure(options.cases[0], options.sizes[0])
        return
    print("| case | contents | CPU s | MiB more | groups | largest | in none | similar groups |")
    print("|---" * 8 + "|")
    for name in options.cases:
        for number in options.sizes:
            subprocess.run(
                [sys.executable, __file__, "--here", "--cases", name, "--sizes", str(number)],
                check=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )


if __name__ == "__main__":
    main()
