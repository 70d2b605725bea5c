"""A real Milvus, of the package `milvus` (2.3.5): it listens on all interfaces, so on those of its own network alone.

python milvus_server.py FOLDER COMMAND...     in `unshare -n`: run a command with SIMCLR_MILVUS
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


class MilvusProcess:
    """A server and its data; `kill` ends it as a power failure would, `start` starts it again."""

    def __init__(self, folder: Path):
        if Path("/sys/class/net").is_dir() and any(name != "lo" for name in _interfaces()):
            raise RuntimeError("Milvus listens on all interfaces; start it in a network of its own: unshare -n")
        self.folder = folder

    def start(self) -> None:
        from milvus import MilvusServer

        self._server = MilvusServer(wait_for_started=True)
        self._server.set_base_dir(str(self.folder))
        self._server.start()

    @property
    def url(self) -> str:
        return f"milvus://127.0.0.1:{self._server.listen_port}"

    @property
    def pid(self) -> int:
        return self._server.server_proc.pid

    def kill(self) -> None:
        self._server.server_proc.kill()
        self._server.server_proc.wait()


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


@contextlib.contextmanager
def milvus(folder: Path) -> Iterator[MilvusProcess]:
    """Run one until the block ends, in a network namespace whose loopback is brought up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        server = MilvusProcess(folder)
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    server.start()
    try:
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    with milvus(Path(sys.argv[1])) as running:
        raise SystemExit(subprocess.run(sys.argv[2:], env=os.environ | {"SIMCLR_MILVUS": running.url}).returncode)
