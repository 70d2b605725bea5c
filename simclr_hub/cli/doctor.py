"""`doctor`: what is installed, on what devices, where models are kept, and which ways of running them are right."""

import json
import os
import platform
import shutil
import sqlite3
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from .._text import shown
from ..errors import SimCLRHubError
from ._output import echo, json_option, print_json, print_table

#: Largest difference from the known vector, relative to its largest value, at which a precision is right: half
#: precisions round, and JPEG decoders may differ by a grey level. A wrong layer differs by far more.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
#: The same for the whitened vector in float32: what hardly varies is made larger, also in the noise.
WHITENED = 1e-2


@click.command("doctor")
@click.option(
    "--distributed",
    is_flag=True,
    help="Under torchrun: check that its processes train as one process with the whole batch would.",
)
@json_option
def doctor_command(distributed: bool, as_json: bool) -> int:
    """Show what is installed, on what device, and whether a known photo gives the known vector on each runtime."""
    if distributed:
        return _processes(as_json)
    versions, devices, cache = _versions(), _devices(), _cache()
    runtimes = [_known_photo(device, precision) for device in devices for precision in TOLERANCE]
    if find_spec("onnxruntime"):
        runtimes.append(_known_photo("cpu", "float32", "onnxruntime"))
    runtimes.append(_known_photo("cpu", "float32", whiten=True))
    healthy = all(runtime["verdict"] != "WRONG" for runtime in runtimes)
    if as_json:
        parts = {"versions": versions, "devices": devices, "cache": cache, "runtimes": runtimes}
        print_json(parts | {"healthy": healthy})
    else:
        print_table(["what", "found"], [*versions.items(), *devices.items(), *cache.items()])
        echo()
        rows = [
            [
                f"{r['device']}, {r['precision']}, {r['runtime']}{', whitened' * r['whitened']}",
                r["verdict"],
                r["detail"],
            ]
            for r in runtimes
        ]
        print_table(["known photo on", "vector", ""], rows)
    return 0 if healthy else 1


def _versions() -> dict[str, str]:
    """List Python, SQLite, and every package that this one asks for, with what it asks where that is not met."""
    from packaging.requirements import Requirement

    found = {"python": platform.python_version(), "platform": platform.platform(), "sqlite": sqlite3.sqlite_version}
    found["simclr-hub"] = version("simclr-hub")
    for requirement in map(Requirement, requires("simclr-hub") or ()):
        marker = str(requirement.marker or "")
        if "dev" in marker:
            continue
        try:
            installed = version(requirement.name)
            fits = requirement.specifier.contains(installed, prereleases=True)
            found[requirement.name] = installed if fits else f"{installed}, but {requirement.specifier} is needed"
        except PackageNotFoundError:
            extra = marker.rpartition("==")[2].strip(" \"'")
            found[requirement.name] = (
                f"not installed (pip install 'simclr-hub[{extra}]')" if extra else "NOT INSTALLED"
            )
    return found


def _devices() -> dict[str, str]:
    """Map torch devices to what they are."""
    import torch

    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def _cache() -> dict[str, str]:
    """Say where downloaded models go, and whether they can."""
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE)
    there = next(p for p in (path, *path.parents) if p.exists())
    writable = "" if os.access(there, os.W_OK) else ", NOT WRITABLE: set HF_HOME"
    hub = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else shown(constants.ENDPOINT)
    return {"model cache": f"{path}, {shutil.disk_usage(there).free / 2**30:.1f} GiB free{writable}", "hub": hub}


def _known_photo(device: str, precision: str, runtime: str = "torch", *, whiten: bool = False) -> dict[str, Any]:
    """Embed a photo whose vector was recorded when the default checkpoint was made, and compare."""
    import torch

    from ..embedder import embed
    from ..loading import load_whitening

    assets = Path(str(files("simclr_hub") / "assets"))
    file, tolerance = ("known_whitened.json", WHITENED) if whiten else ("known_vector.json", TOLERANCE[precision])
    known = np.array(json.loads((assets / "default" / file).read_text()))
    result: dict[str, Any] = {"device": device, "precision": precision, "runtime": runtime, "whitened": whiten}
    try:
        photo, dtype = assets / "sample-photos" / "cat_1.jpg", getattr(torch, precision)
        vectors = embed(photo, device=device, dtype=dtype, runtime=runtime)
        whitening = load_whitening() if whiten else None
        vector = (whitening.apply(vectors) if whitening else vectors)[0]
    except (SimCLRHubError, RuntimeError, TypeError) as e:  # what torch raises for what a device cannot do
        return result | {"verdict": "unavailable", "detail": " ".join(str(e).split())[:100]}
    difference = float(np.abs(vector - known).max() / np.abs(known).max())
    cosine = float(vector @ known / np.linalg.norm(vector) / np.linalg.norm(known))
    return result | {
        "verdict": "right" if difference < tolerance else "WRONG",
        "difference": difference,
        "detail": f"largest difference {difference:.1e}, cosine {cosine:.6f}",
    }


def _processes(as_json: bool) -> int:
    """Compare the processes of a torchrun with one; the first of them speaks for all."""
    from ..training.equality import check_equality

    report = check_equality()
    if os.environ["RANK"] == "0":
        facts = asdict(report)
        if as_json:
            print_json(facts | {"equal": report.equal})
        else:
            rows = [(k.replace("_", " "), f"{v:.1e}" if isinstance(v, float) else v) for k, v in facts.items()]
            print_table(["what", "found"], [*rows, ("equal to one process", "yes" if report.equal else "NO")])
    return 0 if report.equal else 1
