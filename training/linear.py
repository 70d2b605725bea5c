"""Linear evaluation as the official code does it: a classifier learns on crops of the images, the encoder is frozen.

Source: google-research/simclr, `run.py` with `--train_mode=finetune --fine_tune_after_block=4` and its README.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.modeling_simclr import SimCLRModel
from simclr_hub.pixels import normalize_pixels

from .augmentations import Views
from .optimization import cosine, official_steps
from .supervised import start_from_zeros, supervised_loss

MOMENTUM = 0.9


def learning_rates(steps: int, batch_size: int, learning_rate: float | None = None) -> Iterator[float]:
    """Yield the rate of each step: a cosine from 0.1 x batch / 256, or from `learning_rate`, towards 0 at T."""
    first = 0.1 * batch_size / 256 if learning_rate is None else learning_rate
    return (first * cosine(step / steps) for step in range(steps))


def batches(images: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield the images of each step: one shuffled epoch after another, so that a batch may cross an epoch's end."""
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < batch_size:
            waiting += torch.randperm(images, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def train_linear(
    model: SimCLRModel,
    processor: SimCLRImageProcessor,
    read: Callable[[Sequence[int]], Sequence[Tensor]],
    labels: Tensor,
    classes: int,
    layers: Mapping[str, int],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, nn.Linear]:
    """Train a linear classifier on each of several layers of a frozen encoder, all on the same crops.

    Args:
        model: put into inference mode; its weights and statistics stay.
        processor: of the model, for the side of its input, and its mean and std if it has them.
        read: images by their places, each (3, H, W), uint8 or float in [0, 1].
        labels: (N,), classes.
        classes: C.
        layers: name -> 0 for h, j for g's layer j.
        epochs: how often each image is seen.
        batch_size: images a step.
        learning_rate: at the start; 0.1 x batch_size / 256 if not given.
        weight_decay: of weights and bias alike; the official one is 0 for CIFAR-10, 1e-6 for ImageNet.
        seed: of the order and the crops.
        on_step: called after each step.

    Returns:
        name -> classifier.
    """
    device = next(model.parameters()).device
    model.eval()
    views = Views(processor.size["height"], operations=("crop", "flip"))
    widths = [model.config.hidden_size, *model.config.projection_sizes]
    classifiers = {
        name: torch.nn.utils.skip_init(nn.Linear, widths[layer], classes, device=device)
        for name, layer in layers.items()
    }
    for classifier in classifiers.values():
        start_from_zeros(classifier)
    optimizer = torch.optim.SGD(
        [p for classifier in classifiers.values() for p in classifier.parameters()],
        lr=0.0,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=weight_decay,
    )
    _, steps = official_steps(len(labels), batch_size, epochs, 0)
    order = batches(len(labels), batch_size, steps, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for rows, rate in zip(order, learning_rates(steps, batch_size, learning_rate), strict=True):
            with torch.no_grad():
                pixels = crops(views, read(rows)).to(device)
                if processor.do_normalize:
                    pixels = normalize_pixels(pixels, processor.image_mean, processor.image_std)
                h = torch.cat([model(part).pooler_output for part in pixels.split(_AT_ONCE)])
                features = [h, *model.projection(h)] if any(layers.values()) else [h]
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = sum(
                supervised_loss(classifiers[name](features[j]), labels[rows].to(device)) for name, j in layers.items()
            )
            torch.as_tensor(loss).backward()
            optimizer.step()
            on_step()
    return classifiers


_AT_ONCE = 64  # images of a forward pass


def crops(views: Views, images: Sequence[Tensor]) -> Tensor:
    """Make one view of each image, (B, 3, size, size); images of one shape together, which is faster."""
    if len({image.shape for image in images}) == 1:
        return views(torch.stack(list(images)))
    return torch.cat([views(image[None]) for image in images])
