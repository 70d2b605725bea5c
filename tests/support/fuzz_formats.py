"""Thousands of damaged files of each format in child processes with limits: `python fuzz_formats.py 5000 [FORMAT]`.

Each must give an image or an `ImageError`, within the limits; what kills a child, takes too long or raises something
else is printed with its seed, and the next child goes on behind it.
"""

import faulthandler
import json
import random
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter

#: For one file.
SECONDS = 20
MEMORY = 3 << 30


def main(count: int, formats: list[str]) -> int:
    bad = 0
    for format in formats:
        outcomes: Counter[str] = Counter()
        slowest, start = (0.0, 0), 0
        while start < count:
            child = subprocess.run(
                [sys.executable, __file__, "child", format, str(start), str(count)], stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            lines = [json.loads(line) for line in child.stdout.splitlines()]
            for i, (outcome, seconds) in enumerate(lines, start):
                slowest = max(slowest, (seconds, i))
                outcomes[outcome] += 1
                if outcome not in ("image", "ImageError"):
                    bad += 1
                    print(f"{format} {i}: {outcome}", flush=True)
            start += len(lines)
            if start < count:
                bad += 1
                outcomes["died"] += 1
                print(f"{format} {start}: the child ended with {child.returncode}", flush=True)
                start += 1
        print(f"{format}: {count:,} mutants: {dict(outcomes)}; slowest {slowest[0]:.1f} s ({slowest[1]})", flush=True)
    return 1 if bad else 0


def child(format: str, start: int, count: int) -> None:
    from photo_formats import mutant, seeds

    from simclr_hub.errors import ImageError
    from simclr_hub.images import load_image

    found = seeds()[format]
    for data in found:
        load_image(data)  # all is imported, and the seeds are good
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for i in range(start, count):
        data = mutant(found[i % len(found)], random.Random(zlib.crc32(f"{format} {i}".encode())))
        began = time.perf_counter()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            load_image(data)
            outcome = "image"
        except ImageError:
            outcome = "ImageError"
        except BaseException as e:
            outcome = f"{type(e).__module__}.{type(e).__name__}: {e}"
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([outcome, round(time.perf_counter() - began, 3)]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main(int(sys.argv[1]), sys.argv[2:] or ["HEIF", "AVIF", "JXL", "RAW"]))
