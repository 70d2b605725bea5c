"""What linear evaluation, fine-tuning and distillation compute: which weights learn, in which mode, from which loss.

Where the official TF1 and TF2 codes differ, TF1 is followed, which made the released checkpoints; what TF2 does
otherwise with g is a choice.

Source: google-research/simclr, `model.py`, `resnet.py`, `model_util.py`, `tf2/model.py` and the distillation
notebooks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from simclr_hub.modeling_simclr import SimCLRForImageClassification

#: What learns is this part and all after it; the official `fine_tune_after_block` is this place less 1.
TRAINED_FROM = ("stem", "stage1", "stage2", "stage3", "stage4", "classifier")
#: What becomes of the layers of g below the classifier: TF1 never moves their weights, TF2 and the paper train them.
HEADS = ("frozen", "trained")


def choose_trained(model: SimCLRForImageClassification, trained_from: str = "stem", head: str = "frozen") -> None:
    """Let the weights learn that the official code trains, and no others.

    Args:
        model: the classifier; `config.classifier_layer` is the official `ft_proj_selector`.
        trained_from: one of `TRAINED_FROM`.
        head: one of `HEADS`, for the layers of g below the classifier; those above it get no gradient in either.

    Raises:
        ValueError: another value, or a stage that the model does not have.
    """
    stages = len(model.config.depths)
    allowed = (*TRAINED_FROM[: stages + 1], TRAINED_FROM[-1])
    if trained_from not in allowed:
        raise ValueError(f"trained_from={trained_from!r} is not one of {', '.join(allowed)}")
    if head not in HEADS:
        raise ValueError(f"head={head!r} is not one of {', '.join(HEADS)}")
    encoder, g = model.simclr.encoder, model.simclr.projection
    first = stages + 1 if trained_from == "classifier" else allowed.index(trained_from)
    for place, part in enumerate((encoder.stem, *encoder.stages)):
        part.requires_grad_(place >= first)
    below = model.config.classifier_layer
    for place, layer in enumerate(g.layers):
        layer.requires_grad_(head == "trained" and trained_from != "classifier" and place < below)
    model.classifier.requires_grad_(True)


def training_mode(model: SimCLRForImageClassification) -> None:
    """Put BatchNorm into the official mode for what `choose_trained` chose.

    Batch statistics are used and moved everywhere, in frozen stages too, unless the classifier alone learns: then the
    encoder is in inference mode, and only g, which is computed in any case, moves its statistics.
    """
    model.train()
    if not any(p.requires_grad for p in model.simclr.encoder.parameters()):
        model.simclr.encoder.eval()


def training_logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Compute the logits (B, C) of pixels (B, 3, H, W), and all of g, whose moving statistics move as officially.

    Args:
        model: a `SimCLRForImageClassification`, which may be wrapped in DDP.
        pixels: as the model wants them.
    """
    logits: Tensor = model(pixels, all_projections=True).logits
    return logits


def start_from_zeros(classifier: nn.Linear) -> None:
    """Zero a classifier, as every official fine-tuning and linear evaluation starts."""
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)


def supervised_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the official loss: the weighted cross entropies' sum over the number of weights that are not 0.

    Args:
        logits: (N, C).
        labels: (N,), classes.
        weights: (N,); all 1 if not given. With all 0 the loss is 0.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    if weights is None:
        return losses.mean()
    # Their number, not their sum: a weight of 2 counts twice and divides once.
    return (losses * weights).sum() / (weights != 0).sum().clamp_min(1)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute T^2 x the mean cross entropy of the student's softened predictions with the teacher's.

    Args:
        student: logits (N, C).
        teacher: logits (N, C); nothing is learnt through them.
        temperature: T, above 0; the papers' is 0.1 for self-distillation and 1 from a big network to a small one.

    Raises:
        ValueError: a temperature that is not above 0, or other shapes.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0")
    if student.shape != teacher.shape:
        raise ValueError(f"the student has logits {tuple(student.shape)}, the teacher {tuple(teacher.shape)}")
    targets = (teacher.detach() / temperature).softmax(1)
    return temperature**2 * F.cross_entropy(student / temperature, targets)


def mixed_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    alpha: float = 1.0,
    labelled_rows: float | None = None,
) -> Tensor:
    """Compute (1 - alpha) x the cross entropy of the labelled rows + alpha x the distillation loss of all rows.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        labels: (N,), classes; -1 for rows without a label.
        temperature: of the distillation.
        alpha: its share, 0 to 1; with 1 labels are not used.
        labelled_rows: by how many the labelled rows' sum is divided, if not by their number: in a distributed run the
            mean over the processes.

    Raises:
        ValueError: an alpha out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie within [0, 1]")
    loss = alpha * distillation_loss(student, teacher, temperature)
    if alpha < 1:
        count = float((labels >= 0).sum()) if labelled_rows is None else labelled_rows
        total = F.cross_entropy(student, labels, ignore_index=-1, reduction="sum")
        loss = loss + (1 - alpha) * total / (count or 1)
    return loss
