"""`simclr-hub pretrain` and `finetune`: run a recipe; they load `simclr_hub.training` only here."""

from pathlib import Path

import click

from ..errors import MissingExtraError
from ._output import echo


@click.command("pretrain")
@click.argument("recipe")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--show-views",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Do not train: write a PNG of some images and the views that training would make of them.",
)
def pretrain_command(recipe: str, settings: tuple[str, ...], show_views: Path | None) -> None:
    """Pretrain an encoder by RECIPE, a name or a .yaml file; an interrupted run resumes where it stopped.

    \b
    simclr-hub pretrain tiny_imagenet_default data=FOLDER
    simclr-hub pretrain tiny_imagenet_default data=FOLDER num_train_epochs=22
    simclr-hub pretrain tiny_imagenet_default --show-views views.png
    """  # noqa: D301 (click's mark of lines that are not to be filled)
    try:
        from ..training import figures
        from ..training.pretrain import pretrain
    except ImportError as e:
        raise MissingExtraError(e.name or "accelerate", "train") from e
    if show_views is not None:
        figures.show_views(recipe, settings, show_views)
        echo(f"views in {show_views}")
        return
    echo(f"final model in {pretrain(recipe, settings)}")


@click.command("finetune")
@click.argument("recipe")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
def finetune_command(recipe: str, settings: tuple[str, ...]) -> None:
    """Train a classifier from few labels by RECIPE, a name or a .yaml file; an interrupted run resumes.

    \b
    simclr-hub finetune finetune_photos data=FOLDER
    simclr-hub finetune finetune_photos data=FOLDER labels=10 trained_from=classifier
    simclr-hub finetune simclr_v2_finetune_1pct data=FOLDER init_from=simclr-v2-r50

    FOLDER holds a folder of photos for each class.
    """  # noqa: D301 (click's mark of lines that are not to be filled)
    try:
        from ..training.finetune import finetune
    except ImportError as e:
        raise MissingExtraError(e.name or "accelerate", "train") from e
    echo(f"classifier in {finetune(recipe, settings)}")


@click.command("distill")
@click.argument("recipe")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
def distill_command(recipe: str, settings: tuple[str, ...]) -> None:
    """Train a student on a teacher's predictions by RECIPE, a name or a .yaml file; an interrupted run resumes.

    \b
    simclr-hub distill distill_photos data=FOLDER teacher=runs/finetune_photos/final
    simclr-hub distill simclr_v2_distill_small data=FOLDER teacher=CLASSIFIER model.width_multiplier=1

    FOLDER needs no labels. The teacher is a directory, an official name or a Hub id of an image classifier.
    """  # noqa: D301 (click's mark of lines that are not to be filled)
    try:
        from ..training.distill import distill
    except ImportError as e:
        raise MissingExtraError(e.name or "accelerate", "train") from e
    echo(f"student in {distill(recipe, settings)}")
