"""Code run against the local hub by real clients, each in a fresh process: HF_ENDPOINT is read at import.

One parent process imports what is slow to import, once, and forks for every job; a job can be killed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub_server import TOKEN, Hub

_PARENT = """
import json, os, sys, traceback
exec(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)  # the parent's standard output is for answers alone
        try:
            scope = dict(job["given"])
            exec(job["code"], scope)
            answer = {"result": scope.get("result")}
        except BaseException as e:
            answer = {"error": type(e).__name__, "message": str(e), "traceback": traceback.format_exc()}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    print(pid, flush=True)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(pid, 0)[1]
    print(json.dumps({"killed": os.WIFSIGNALED(status), **json.loads(answer or b"{}")}), flush=True)
"""

#: Waits between retries are cut short.
QUICK = "import time; time.sleep = lambda s, sleep=time.sleep: sleep(min(s, 0.01))\n"
#: Imports that take seconds; this package's, on top, takes a moment, so that a job decides whether it has it.
SLOW_IMPORTS = (
    "import torch, transformers.pipelines, transformers.models.auto.modeling_auto; torch.set_num_threads(1)\n"
)
#: Before a job's code: this package cannot be imported.
WITHOUT_US = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("simclr_hub", "training"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


class Client:
    """Runs code in forks of one prepared process."""

    def __init__(self, hub: Hub, process: subprocess.Popen[str]):
        self.hub, self.process = hub, process

    def run(self, code: str, **given: Any) -> dict[str, Any]:
        """What `code` left in `result`, as {"result": ...}; or {"error", "message"}; "killed" says if it was."""
        assert self.process.stdin and self.process.stdout
        self.hub.client_pid = self._pid
        self.process.stdin.write(json.dumps({"code": code, "given": given}) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())
        return json.loads(self.process.stdout.readline())

    def result(self, code: str, **given: Any) -> Any:
        """As `run`, for what must succeed."""
        answer = self.run(code, **given)
        assert "result" in answer, answer.get("traceback", answer)
        return answer["result"]

    def _pid(self) -> int:
        while not hasattr(self, "pid"):
            pass
        return self.pid


@contextmanager
def client(hub: Hub, home: Path, **env: str) -> Iterator[Client]:
    """A client of `hub` with its cache below `home`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT, QUICK + SLOW_IMPORTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **env,
        },
    )
    try:
        assert process.stdout and process.stdout.readline().strip() == "ready", "the client did not start"
        yield Client(hub, process)
    finally:
        process.kill()
        process.communicate()
