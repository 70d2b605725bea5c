"""Clusters of two nodes on the loopback for the engines of parts, what of them can be killed, and a driver to run.

`python -c "import engine_clusters; engine_clusters.drive()" PLAN OUT ENGINE '{"delay": 0.01}'` makes the parts of a
plan and prints a line of JSON for each.
"""

import importlib.util
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simclr_hub.embedder import Embedding, Failure
from simclr_hub.errors import ImageError
from simclr_hub.images import FileBytes, load_image
from simclr_hub.parts import part
from simclr_hub.parts.plan import Plan
from simclr_hub.parts.run import run_parts
from simclr_hub.parts.storage import Folder
from simclr_hub.signature import picture_signature

SUPPORT = str(Path(__file__).parent)


def jpeg(number: int) -> bytes:
    """A small JPEG of one colour, which tells which of 2^17 it is."""
    colour = ((number & 63) * 4 + 2, (number >> 6 & 63) * 4 + 2, (number >> 12 & 31) * 8 + 4)
    Image.new("RGB", (16, 16), colour).save(buffer := io.BytesIO(), "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def numbers(vectors: np.ndarray) -> np.ndarray:
    """Which images vectors (N, 4) of length 1 are of."""
    red, green, blue = (np.rint(vectors[:, i] / vectors[:, 3] * 255).astype(int) for i in range(3))
    return red // 4 | green // 4 << 6 | blue // 8 << 12


def write_shards(folder: Path, shards: int, images: int) -> None:
    """Write tar files of images, numbered through, as img2dataset names them."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(shard * images, (shard + 1) * images):
                info = tarfile.TarInfo(f"{number:09d}.jpg")
                info.size = len(data := jpeg(number))
                archive.addfile(info, io.BytesIO(data))


def wrong_rows(out: str | os.PathLike[str], images: int) -> list[str]:
    """Compare parts of `write_shards` with what must be in them: each image once, with its own vector."""
    import pyarrow.parquet

    seen: list[int] = []
    wrong = []
    for path in sorted(Path(out).glob("*.parquet")):
        table = pyarrow.parquet.read_table(path, columns=["key", "vector"])
        keys = np.array(table["key"].to_pylist(), int)
        vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(keys), -1)
        seen += keys.tolist()
        wrong += [f"{path.name}: {key} has another's vector" for key in keys[numbers(vectors) != keys]]
    return wrong + ([] if sorted(seen) == list(range(images)) else [f"{len(seen)} rows, {len(set(seen))} images"])


class ColourEmbedder:
    """The mean colour, so that a vector tells its image.

    Args:
        count: a file that grows by a byte for each image that is embedded.
        delay: seconds an image takes.
        crash: an image with these bytes ends the process; one that holds CRASH is also known to a child.
    """

    dim = 4

    def __init__(self, count: str = "", delay: float = 0.0, crash: str = "") -> None:
        self.fingerprint = {"model": "colours", "weights": "1"}
        self._count = os.open(count, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if count else None
        self._delay, self._crash = delay, crash.encode()
        if crash:
            part.decode_sandboxed = lambda paths: {
                path: f"{os.fsdecode(path)}: decoding it ends the process"
                for path in paths
                if b"CRASH" in Path(os.fsdecode(path)).read_bytes()
            }

    def stream(self, sources: Iterable[Any], *, signatures: bool = False) -> Iterator[Embedding | Failure]:
        for position, source in enumerate(sources):
            if self._crash and isinstance(source, FileBytes) and self._crash in source.data:
                os._exit(9)
            try:
                image = load_image(source)
            except ImageError as e:
                yield Failure(position, source, e)
                continue
            if self._count is not None:
                os.write(self._count, b".")
            if self._delay:
                time.sleep(self._delay)
            vector = np.array([*image.pixels.mean((1, 2)) / 255, 1], np.float32)
            signature = picture_signature(image.pixels) if signatures else b""
            yield Embedding(position, source, vector, image.content_hash, image.info, signature)


def drive() -> None:
    """Run a plan on an engine, as the module says; exit code 1 if parts failed."""
    plan, out, engine, settings = sys.argv[1:]
    told = json.loads(settings)
    workers, share = told.pop("workers", None), told.pop("worker", (1, 1))
    module, _, name = told.pop("make", "engine_clusters:ColourEmbedder").partition(":")
    report = run_parts(
        Plan.read(plan),
        Folder(out).place,
        partial(getattr(importlib.import_module(module), name), **told),
        engine=engine,
        workers=workers,
        worker=tuple(share),
        progress=lambda result, _: result and print(json.dumps(vars(result)), flush=True),
    )
    print(json.dumps({"report": vars(report)}), flush=True)
    sys.exit(1 if report.failed else 0)


def below(pid: int) -> list[int]:
    """The processes below one, and itself; of one that is gone none."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid] if Path(f"/proc/{pid}").exists() else []
    for one in found:
        found += children.get(one, [])
    return found


def command(pid: int) -> str:
    """What a process was started as."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """The CPU seconds that processes took so far, without their children's."""
    found = {}
    for pid in pids:
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return found


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Local:
    """Processes of this machine; they have no nodes."""

    engine = "local"
    within: list[str] = []

    def __init__(self, folder: Path) -> None:
        self.env = {**os.environ, "PYTHONPATH": SUPPORT, "OMP_NUM_THREADS": "1"}
        self.driver: subprocess.Popen[str] | None = None

    def start(self, plan: Path, out: Path, **settings: Any) -> "subprocess.Popen[str]":
        """Start a driver."""
        code = "import engine_clusters; engine_clusters.drive()"
        words = [sys.executable, "-W", "ignore", "-c", code, str(plan), str(out), self.engine, json.dumps(settings)]
        self.driver = subprocess.Popen(
            [*self.within, *words], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self.driver

    def pids(self) -> list[int]:
        """All processes there are of it."""
        return below(self.driver.pid) if self.driver else []

    def workers(self) -> list[int]:
        """The processes that embed."""
        return [pid for pid in self.pids() if "spawn_main" in command(pid) and "resource_tracker" not in command(pid)]

    def node(self) -> list[int]:
        """The processes of a node."""
        return []

    def mend(self) -> None:
        """Start again what was killed."""

    def close(self) -> None:
        """End all of it."""
        kill(self.pids())
        if self.driver:
            self.driver.communicate()


class Spark(Local):
    """`local-cluster`: two executors, each a JVM with Python workers of its own."""

    engine = "spark"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        submit = "--master local-cluster[2,1,1024] --conf spark.ui.enabled=false --conf spark.driver.memory=1g "
        submit += f"--conf spark.driver.bindAddress=127.0.0.1 --conf spark.local.dir={folder} pyspark-shell"
        self.env |= {"PYSPARK_SUBMIT_ARGS": submit, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        home = folder / "home"  # executors write below it
        home.mkdir()
        for path in _spark_home().iterdir():
            if path.name != "work":
                (home / path.name).symlink_to(path)
        self.env["SPARK_HOME"] = str(home)

    def workers(self) -> list[int]:
        daemons = {pid for pid in self.pids() if "pyspark.daemon" in command(pid)}
        return sorted(daemons & {pid for daemon in daemons for pid in below(daemon)[1:]})

    def node(self) -> list[int]:
        executors = [pid for pid in self.pids() if "CoarseGrainedExecutorBackend" in command(pid)]
        return below(executors[-1])


class Ray(Local):
    """Two nodes of one CPU, started as `ray start` does on two machines, with a token."""

    engine = "ray"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.2", 0))  # 127.0.0.1 it would take for the machine's address
            self.address = f"127.0.0.2:{free.getsockname()[1]}"
        # It listens on all interfaces, so there is none but the loopback.
        self._net = subprocess.Popen(["unshare", "-rn", "sh", "-c", "ip link set lo up && exec sleep 1000000"])
        wait_for(lambda: command(self._net.pid).startswith("sleep"), 10)
        self.within = ["nsenter", "--preserve-credentials", "-U", "-n", "-t", str(self._net.pid)]
        self._folder = folder  # of a short name: sockets are in it
        self.env |= {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder)}
        port = self.address.rpartition(":")[2]
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        self.mend()

    def _node(self, *words: str) -> None:
        ray = shutil.which("ray", path=os.path.dirname(sys.executable)) or "ray"
        place = f"--node-ip-address=127.0.0.{2 + len(self._nodes)}"
        words = (*self.within, ray, "start", "--block", place, "--num-cpus=1", *words)
        with open(self._folder / "nodes.log", "ab") as log:
            self._nodes.append(subprocess.Popen(words, env=self.env, stdout=log, stderr=log))
        wait_for(lambda: any("raylet" in command(pid) for pid in below(self._nodes[-1].pid)), 240)

    def pids(self) -> list[int]:
        return [*super().pids(), *(pid for node in self._nodes for pid in below(node.pid))]

    def workers(self) -> list[int]:
        return [pid for pid in self.pids() if command(pid).startswith("ray::_Actor")]

    def node(self) -> list[int]:
        return below(self._nodes[-1].pid)

    def close(self) -> None:
        super().close()
        for process in (*self._nodes, self._net):
            process.kill()
            process.wait()

    def mend(self) -> None:
        for node in self._nodes:
            with suppress(subprocess.TimeoutExpired):
                node.wait(0.5)
        self._nodes = [node for node in self._nodes if node.returncode is None]
        if len(self._nodes) < 2:
            self._node(f"--address={self.address}")


def _spark_home() -> Path:
    found = importlib.util.find_spec("pyspark")
    return Path(found.origin).parent if found and found.origin else Path()


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until something is there."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing for {seconds} s")
        time.sleep(0.02)
    return found
