"""The long campaigns: what the tests try a few times, thousands of times; every loss is counted and told.

- kills: an index is synced by processes that are killed with SIGKILL, at random times or at each named step, also
  while they recover; after each, what was acknowledged must be there, each photo once with its own vector.
- races: processes that fight for the writer's lock; every acknowledged row must be there.
- store: bytes and pages of a store damaged; what is read is as before or the damage is named, and a repair saves
  only what was there.
- cache: bytes of the search cache damaged; a search finds what the store has.
- torn: stores that are half from before and half from after a commit.
- io: every n-th write, fsync, rename, truncation or creation of a file fails with ENOSPC, EIO or EDQUOT, once or from
  then on, during a sync, a prune and a repair.
- unreadable: photos change, are touched and cannot be read for a while; each sync is followed by a prune.
- roots: folders vanish, leave an empty mount point, come back; copies of them appear and go; syncs and prunes.
- together: two processes sync and a third prunes, all at once, while photos come, move, change and go. These three
  count, after every round, the photos without their row and the rows without their vector.
- images: mutants of images of every format; each gives pixels or an ImageError, in a process with limits on time and
  memory.
- hostile: a folder or tar of odd files goes through `simclr-hub index`; found = embedded + failed.

Run: python benchmarks/faults.py kills --count 2000
     python benchmarks/faults.py hostile --files hostile-images.tar.xz
"""

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = [str(ROOT / "tests" / name) for name in ("index", "faults", "support")]
#: Of one child that decodes images.
MEMORY, SECONDS, BATCH = 3 << 30, 60, 1000
#: What the chunks of a campaign counted.
TOTALS: Counter[str] = Counter()


def campaign(name: str, count: int, chunk: int, run: Callable[[Path, int, int], Any]) -> None:
    """Do `count` in chunks of their own seed and folder; a chunk that fails is counted and told."""
    started, failed = time.monotonic(), 0
    chunks = -(-count // chunk)
    for seed in range(chunks):
        folder = Path(
            tempfile.mkdtemp(prefix=f"simclr-hub-{name}-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        )
        try:
            run(folder.resolve(), min(chunk, count - seed * chunk), 1000 + seed)
        except Exception:
            failed += 1
            print(f"chunk {seed}:", traceback.format_exc(), flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{name}: {min((seed + 1) * chunk, count):,} of {count:,}, {failed} chunks failed", flush=True)
    print(json.dumps({"campaign": name, "count": count, "chunks": chunks, "failed": failed,
                      "seconds": round(time.monotonic() - started), **TOTALS}), flush=True)  # fmt: skip


def kills(folder: Path, count: int, seed: int) -> None:
    test_kill = importlib.import_module("test_kill")
    photos = folder / "photos"
    make_photo = importlib.import_module("index_fakes").make_photo
    for i in range(60):
        make_photo(photos / f"{i}.png", i % 55)
    for i in range(3):
        (photos / f"broken {i}.jpg").write_bytes(b"no image")
    test_kill.kill_loop(folder, photos, count, seed)


def races(folder: Path, count: int, seed: int) -> None:
    refused = importlib.import_module("test_writers").race(folder / "store.sqlite3", count // 4)
    print(f"  {count} commits, {refused} times another had the lock", flush=True)


def store(folder: Path, count: int, seed: int) -> None:
    importlib.import_module("test_store").mutate(folder, count, seed)
    test_repair = importlib.import_module("test_repair")
    (folder / "i").mkdir()
    whole = test_repair.make_store(folder / "store.sqlite3")
    test_repair.mutate(whole, folder / "i" / "store.sqlite3", count, seed)


def cache(folder: Path, count: int, seed: int) -> None:
    importlib.import_module("test_search_cache").mutate(folder, count, seed)


def torn(folder: Path, count: int, seed: int) -> None:
    importlib.import_module("test_torn_store").torn(folder, folder / "photos", count, seed)


def io(folder: Path, count: int, seed: int) -> None:
    print(importlib.import_module("test_io_errors").every_call(folder, 1), flush=True)


def of_folders(name: str) -> Callable[[Path, int, int], None]:
    """Run a campaign of tests/faults/test_campaigns.py and count its losses."""

    def run(folder: Path, count: int, seed: int) -> None:
        result = getattr(importlib.import_module("test_campaigns"), name)(folder, count, seed)
        print(" ", json.dumps(result), flush=True)
        TOTALS.update(result)
        if result["lost rows"] or result["lost vectors"]:
            raise RuntimeError(f"lost: {result}")

    return run


def seeds() -> list[tuple[str, bytes]]:
    """Small images of every format and mode that Pillow here can write."""
    from io import BytesIO

    from PIL import Image

    Image.init()
    draw = random.Random(0)
    picture = Image.frombytes("RGB", (48, 40), draw.randbytes(48 * 40 * 3)).resize((64, 48))
    found = []
    for name in sorted(Image.SAVE):
        for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK", "F"):
            for options in ({}, {"progressive": True, "quality": 80}) if name == "JPEG" else ({},):
                data = BytesIO()
                try:
                    picture.convert("L" if mode == "I;16" else mode).convert(mode).save(data, name, **options)
                except Exception:  # this format does not take it
                    continue
                found.append((f"{name} {mode}", data.getvalue()))
    exif = Image.Exif()
    exif[0x0112], exif[0x0110], exif[0x9003] = 6, "camera", "2020:01:01 00:00:00"
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        data = BytesIO()
        picture.save(data, name, exif=exif)
        found.append((f"{name} EXIF", data.getvalue()))
    return found


def mutant(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Flips, cuts, splices, repetitions, extreme numbers in the header."""
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(damaged)) if damaged else 0
        match draw.randrange(6):
            case 0:
                for _ in range(draw.choice([1, 3, 30])):
                    damaged[draw.randrange(len(damaged))] ^= draw.randrange(1, 256)
            case 1:
                del damaged[max(at, 1) :]
            case 2:
                damaged[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\1\0\0"])
            case 3:
                damaged[min(at, 64) : min(at, 64) + 2] = draw.randbytes(2)
            case 4:
                start = draw.randrange(len(other))
                damaged[at:at] = other[start : start + draw.randrange(1, 200)]
            case 5:
                damaged[at:at] = damaged[max(0, at - draw.randrange(1, 100)) : at] * draw.choice([1, 2, 50])
    return bytes(damaged) or b"\0"


def decode_mutants(count: int, seed: int, extra: list[Path]) -> None:
    """Be the child: decode mutants under limits, print the counts; exit code 1 after 60 s with one."""
    import faulthandler

    import torch  # noqa: F401  (for the first picture it would be imported within the limit, which is too little for it)

    from simclr_hub.errors import ImageError
    from simclr_hub.images import FileBytes, load_image

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    draw = random.Random(seed)
    corpus = seeds() + [(path.name, path.read_bytes()) for path in extra]
    counts: Counter[str] = Counter()
    slowest = 0.0
    for n in range(count):
        name, data = draw.choice(corpus)
        damaged = mutant(data, draw.choice(corpus)[1], draw)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        started = time.monotonic()
        try:
            pixels = load_image(FileBytes(name, damaged)).pixels
            assert pixels.shape[0] == 3 and pixels.size, pixels.shape
            counts["decoded"] += 1
        except ImageError as e:
            assert str(e) and str(e).isprintable()
            counts[type(e).__name__] += 1
        except BaseException as e:
            counts["OTHER"] += 1
            print(f"mutant {n} of seed {seed}, {name}: {type(e).__name__}: {e}", file=sys.stderr)
        slowest = max(slowest, time.monotonic() - started)
        faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"counts": counts, "peak_mb": round(peak), "slowest": round(slowest, 2)}))


def images(count: int, extra: list[Path]) -> None:
    total: Counter[str] = Counter()
    peak = slowest = 0.0
    started = time.monotonic()
    for seed in range(-(-count // BATCH)):
        command = [sys.executable, __file__, "decode", "--count", str(BATCH), "--seed", str(seed)]
        for path in extra:
            command += ["--files", str(path)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            total[f"CRASHED OR HUNG ({run.returncode})"] += 1
            print(f"seed {seed}: {run.returncode}\n{run.stderr[-3000:]}", flush=True)
            continue
        print(run.stderr, end="", flush=True)
        result = json.loads(run.stdout)
        total.update(result["counts"])
        peak, slowest = max(peak, result["peak_mb"]), max(slowest, result["slowest"])
    print(json.dumps({"campaign": "images", "count": sum(total.values()), "outcomes": total, "peak_mb": peak,
                      "slowest_s": slowest, "seconds": round(time.monotonic() - started)}), flush=True)  # fmt: skip


def hostile(files: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="simclr-hub-hostile-") as name:
        folder = Path(name)
        if files.is_dir():
            shutil.copytree(files, folder / "photos")
        else:
            with tarfile.open(files) as archive:
                archive.extractall(folder / "photos", filter="data")
        number = sum(path.is_file() for path in (folder / "photos").rglob("*"))
        code = (
            "import sys; from simclr_hub.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "finally:\n"
            "    import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)"
        )
        command = [sys.executable, "-c", code, "index", str(folder / "photos"), "-o", name + "/i", "--json"]
        started = time.monotonic()
        run = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - started
        if run.returncode not in (0, 3):
            raise RuntimeError(run.stdout + run.stderr)
        report = json.loads(run.stdout)
        check = subprocess.run(
            [sys.executable, "-c", code, "check", name + "/i", "--deep", "--json"],
            capture_output=True, text=True,
        )  # fmt: skip
        print(json.dumps({
            "campaign": "hostile", "files": number, "exit": run.returncode, "peak_mb": int(run.stderr.split()[-1]),
            "seconds": round(seconds), "sound": json.loads(check.stdout)["sound"],
            **{key: report[key] for key in ("found", "embedded", "copied", "failed", "skipped")},
        }))  # fmt: skip


FOLDERS = {name: (of_folders(name), 1000, 100) for name in ("unreadable", "roots", "together")}
CAMPAIGNS = {"kills": (kills, 2000, 50), "races": (races, 1000, 100), "store": (store, 500, 50),
             "cache": (cache, 500, 50), "torn": (torn, 200, 20), "io": (io, 1, 1), **FOLDERS}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*CAMPAIGNS, "images", "hostile", "decode"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--files", type=Path, action="append", default=[], help="For hostile; more seeds for images.")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path[:0] = TESTS
    os.environ["PYTHONPATH"] = os.pathsep.join([*TESTS, os.environ.get("PYTHONPATH", "")])  # for fork servers
    if arguments.what == "decode":
        decode_mutants(arguments.count, arguments.seed, arguments.files)
    elif arguments.what == "images":
        images(arguments.count or 20_000, arguments.files)
    elif arguments.what == "hostile":
        for files in arguments.files:
            hostile(files)
    else:
        run, count, chunk = CAMPAIGNS[arguments.what]
        campaign(arguments.what, arguments.count or count, chunk, run)


if __name__ == "__main__":
    main()
