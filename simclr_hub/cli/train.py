"""`simclr-hub pretrain`: runs a recipe; loads `simclr_hub.training` only here."""

import click

from ..errors import MissingExtraError


@click.command("pretrain")
@click.argument("recipe")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
def pretrain_command(recipe: str, settings: tuple[str, ...]) -> None:
    r"""Pretrain an encoder by RECIPE, a name or a .yaml file; an interrupted run goes on where it stopped.

    \b
    simclr-hub pretrain tiny_imagenet_default data=FOLDER
    simclr-hub pretrain tiny_imagenet_default data=FOLDER model.width_multiplier=0.25 num_train_epochs=22
    """
    try:
        from ..training.pretrain import pretrain
    except ImportError as e:
        raise MissingExtraError(e.name or "accelerate", "train") from e
    click.echo(f"final model in {pretrain(recipe, settings)}")
