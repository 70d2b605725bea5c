"""What is watched during pretraining: how well, how fast, whether anything is learned at all; and its curves."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from simclr_hub._files import write_file
from simclr_hub.errors import TrainingError

logger = logging.get_logger(__name__)

#: Spread of z below which all are alike.
_COLLAPSED = 0.01
#: Logs in a row that the loss may be that of guessing, as it is at the start.
_PATIENCE = 5


class OnlineClassifier(nn.Module):
    """The official classifier on h that learns beside the encoder, behind a stop-gradient, to watch progress.

    It moves as LARS moves a classifier: with the full learning rate, without trust ratio; its kernel decays through
    the loss (google-research/simclr, `tf2/run.py`, `lineareval_while_pretraining`).

    Args:
        width: D, of h.
        classes: how many.
        weight_decay: of the kernel.
        momentum: share of the velocity that is kept.
    """

    def __init__(self, width: int, classes: int, weight_decay: float = 0.0, momentum: float = 0.9):
        super().__init__()
        self.classifier = nn.Linear(width, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("weight_velocity", torch.zeros_like(self.classifier.weight))
        self.register_buffer("bias_velocity", torch.zeros_like(self.classifier.bias))
        self.weight_decay, self.momentum = weight_decay, momentum

    @torch.enable_grad()
    def step(self, h: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Learn from h (B, D) and labels (B,); return the cross entropy and the share that was right, both before."""
        logits = self.classifier(h.detach().float())
        loss = F.cross_entropy(logits, labels)
        parameters = (self.classifier.weight, self.classifier.bias)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            decays = (self.weight_decay, 0.0)
            for p, velocity, g, decay in zip(parameters, self.buffers(), gradients, decays, strict=True):
                p.sub_(velocity.mul_(self.momentum).add_(g.add(p, alpha=decay), alpha=lr))
        return loss.detach(), (logits.argmax(1) == labels).float().mean()


class Meter:
    """Means over the steps since the last log, and whether every loss was a number."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0
        self._waited = 0.0
        self._since = time.monotonic()
        self._bad_step: Tensor | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in here as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def count(self, step: int, loss: Tensor, values: dict[str, Tensor], images: int) -> None:
        """Record one forward pass: its loss, further scalars to average, and of how many images."""
        # The first step with a non-finite loss stays on the device until someone asks.
        bad = torch.where(loss.isfinite(), -1, step)
        self._bad_step = bad if self._bad_step is None else torch.where(self._bad_step >= 0, self._bad_step, bad)
        for name, value in {"loss": loss, **values}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        self._steps += 1
        self._images += images

    def check_finite(self) -> None:
        """Raise if any loss so far was not finite.

        Raises:
            TrainingError: names the first such step.
        """
        if self._bad_step is not None and (step := int(self._bad_step)) >= 0:
            raise TrainingError(
                f"the loss is not finite at step {step}; the last checkpoint is from before it. "
                "Lower learning_rate, lengthen warm-up, or train without bf16/fp16"
            )

    def taken(self) -> dict[str, float]:
        """Return means since the last call, the loss's among them."""
        if not self._steps:
            return {}
        self.check_finite()
        found = {name: float(total) / self._steps for name, total in self._sums.items()}
        elapsed = time.monotonic() - self._since
        found["images_per_second"] = self._images / max(elapsed, 1e-9)
        found["data_wait"] = self._waited / max(elapsed, 1e-9)
        self._sums, self._steps, self._images, self._waited = {}, 0, 0, 0.0
        self._since = time.monotonic()
        return found


class Monitor(Meter):
    """What pretraining is watched by: warnings name what goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._stuck = 0  # logs in a row with a loss of chance
        self._warned: set[str] = set()

    def add(self, step: int, loss: Tensor, z: Tensor, values: dict[str, Tensor], views: int = 2) -> None:
        """Record one forward pass of z (kN, d), k `views` an image: its loss, and further scalars to average."""
        with torch.no_grad():
            # 1 where z is spread evenly over the sphere, 0 where all are alike.
            spread = F.normalize(z.detach().float()).var(0, unbiased=False).sum()
        self.count(step, loss, {"z_spread": spread, **values}, len(z) // views)

    def means(self, rows: int) -> dict[str, float]:
        """Return means since the last call; `rows` is kN, the views that a row is compared with, itself included.

        Warns where all z are alike, or the loss is that of guessing.
        """
        if found := self.taken():
            self._warn(found.pop("loss"), found["z_spread"], rows)
        return found

    def _warn(self, loss: float, spread: float, rows: int) -> None:
        chance = math.log(rows - 1)
        if spread < _COLLAPSED:
            self._once(
                f"collapse: all z are alike (spread {spread:.4f}, where 1 is even); nothing is being learned. "
                "Lower learning_rate, or check that g has BatchNorm and that both views differ"
            )
        self._stuck = self._stuck + 1 if loss > 0.98 * chance else 0
        if self._stuck == _PATIENCE:
            self._once(
                f"the loss {loss:.3f} is still no better than guessing among {rows - 1} others ({chance:.3f}): "
                "nothing is being learned. Check the views (--show-views), learning_rate and temperature"
            )

    def _once(self, text: str) -> None:
        kind = text.split()[0]
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(text)


def contrastive_top1(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return the share of the first 1024 first views (N, d) whose nearest second view (N, d) is their own."""
    with torch.no_grad():
        a, b = (F.normalize(z[:1024].detach().float()) for z in (z_a, z_b))
        return ((a @ b.T).argmax(1) == torch.arange(len(a), device=a.device)).float().mean()


#: One panel each: its title, and the keys of the log that it shows, with their names.
PANELS = (
    ("loss", {"loss": "training", "eval_loss": "evaluation"}),
    (
        "accuracy, %",
        {
            "contrastive_top1": "contrastive top-1",
            "probe_top1": "online probe",
            "eval_knn": "kNN",
            "top1": "training top-1",
            "eval_top1": "evaluation top-1",
        },
    ),
    ("learning rate", {"learning_rate": "learning rate"}),
    ("images/s", {"images_per_second": "images/s"}),
)


def draw_curves(log: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write the curves of `log`, the Trainer's `state.log_history`, as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(10, 6), layout="constrained", dpi=100)
    figure.suptitle(title)
    for axes, (name, series) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for key, label in series.items():
            points = [(entry["step"], float(entry[key])) for entry in log if key in entry]
            if points:
                scale = 100 if key in ("contrastive_top1", "probe_top1", "top1") else 1
                axes.plot(
                    *zip(*((x, y * scale) for x, y in points), strict=True),
                    label=label,
                    marker="." * key.startswith("eval_"),
                )
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    write_file(path, lambda file: figure.savefig(file, format="png"))
