"""Write the model cards of model_cards/ again, after the data or a template changed.

python scripts/render_cards.py [FOLDER]
"""

import sys
from functools import partial
from pathlib import Path
from typing import IO

from simclr_hub._files import write_file
from simclr_hub.training.cards import render
from simclr_hub.training.official_cards import official_card, pretrained
from simclr_hub.training.trained_cards import default_card


def all_cards() -> dict[str, str]:
    """Render the cards that are checked in, by name."""
    official = {name: official_card(name, f"org/{name}") for name in pretrained()}
    return {name: render(card) for name, card in {"default": default_card(), **official}.items()}


def main(folder: Path) -> None:
    """Write every card into a folder, which is made if it is not there."""
    folder.mkdir(exist_ok=True)
    for name, text in all_cards().items():
        write_file(folder / f"{name}.md", partial(_write, text.encode()))


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "model_cards"))
