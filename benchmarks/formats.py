"""One photo in every format: how alike its features are, and what decoding it costs.

    OMP_NUM_THREADS=1 python benchmarks/formats.py [--repeat 5]

The shipped sample photos, enlarged to a camera's preview (their short side 768), are written in each format at a high
quality, as Display P3 with its profile, and as a RAW file: a hand-made DNG with a preview of JPEG quality 92, and one
without. Features are the default checkpoint's; the cosine is with those of the photo as PNG. CPU time is that of one
thread for a 12-megapixel photo made of one of them, the median of the runs, with the photo in memory.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from simclr_hub import Embedder
from simclr_hub.images import load_image
from simclr_hub.sources import folder_images

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from photo_formats import encoded, jxl_of_jpeg  # type: ignore[import-not-found]  # noqa: E402
from raw_writer import dng  # type: ignore[import-not-found]  # noqa: E402
from test_colour import P3  # type: ignore[import-not-found]  # noqa: E402


def in_p3(image: Image.Image) -> Image.Image:
    """Write the same colours by Display P3's numbers."""
    turned = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), io.BytesIO(P3))
    assert turned is not None
    return turned


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": lambda image: encoded(image, "PNG"),
    "JPEG, quality 90": lambda image: encoded(image, "JPEG", quality=90),
    "WebP, quality 90": lambda image: encoded(image, "WEBP", lossless=False, quality=90),
    "AVIF, quality 80": lambda image: encoded(image, "AVIF", quality=80),
    "HEIC, quality 80": lambda image: encoded(image, "HEIF", quality=80, chroma=420),
    "JPEG XL, quality 90": lambda image: encoded(image, "JXL", lossless=False, quality=90, effort=3),
    "JPEG XL of the JPEG": lambda image: jxl_of_jpeg(encoded(image, "JPEG", quality=90), image.size),
    "JPEG in Display P3": lambda image: encoded(in_p3(image), "JPEG", quality=90, icc_profile=P3),
    "the same without its profile": lambda image: encoded(in_p3(image), "JPEG", quality=90),
    "RAW with a preview": lambda image: dng(image, preview=image),
    "RAW without": lambda image: dng(image),
}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    photos = []
    for path in folder_images(str(files("simclr_hub") / "assets" / "sample-photos"))[:20]:
        with Image.open(path) as image:
            scale = 768 / min(image.size)
            size = (2 * round(image.width * scale / 2), 2 * round(image.height * scale / 2))
            photos.append(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    large = photos[0].resize((4000, 3000), Image.Resampling.BICUBIC)
    embedder = Embedder(normalize=True)

    def features(write: Callable[[Image.Image], bytes]) -> np.ndarray:
        return np.stack([item.vector for item in embedder.stream(map(write, photos))])  # type: ignore[union-attr]

    reference = features(FORMATS["PNG"])
    print("| written as | cosine with the PNG: median | least | ms of CPU for 12 MP |\n|---|---|---|---|")
    for name, write in FORMATS.items():
        cosines = (features(write) * reference).sum(1)
        data, times = write(large), []
        for _ in range(repeat):
            started = time.process_time()
            load_image(data)
            times.append(time.process_time() - started)
        cost = 1000 * statistics.median(times)
        print(f"| {name} | {np.median(cosines):.4f} | {cosines.min():.4f} | {cost:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
