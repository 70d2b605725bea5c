"""Model cards: rendered from data, checked in below model_cards/ for the models everyone asks for.

    python -m simclr_hub.training.cards [FOLDER]      write them again, after the data or the template changed

A number without a source or a command cannot be made: `Result` refuses it.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from simclr_hub._files import write_file
from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import PublishError
from simclr_hub.whitening import Whitening

from .architecture import count, describe
from .card_check import check_card

TEMPLATES = Path(str(files(__package__) / "templates"))


@dataclass(frozen=True)
class Result:
    """One number and where it is from.

    Args:
        measure: what it says, with its unit: "top-1 accuracy (%), linear classifier on h".
        value: the number.
        dataset: on what, in words.
        source: who published it; with it `source_url`.
        source_url: where to read it.
        command: what measured it here.
        dataset_id: the data set's id on the Hub; with it the number goes into `model-index`.
        split: of that data set.

    Raises:
        PublishError: neither a source with an address nor a command.
    """

    measure: str
    value: float
    dataset: str
    source: str = ""
    source_url: str = ""
    command: str = ""
    dataset_id: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise PublishError(f"{self.measure} = {self.value!r} is not a number")
        if not self.command and not (self.source and self.source_url):
            raise PublishError(
                f"{self.measure} = {self.value}: a number needs a source with its address, or a command"
            )


@dataclass(frozen=True)
class Card:
    """What a card says beside what can be read off the config.

    Args:
        name: the model's.
        repo_id: "org/name", as users type it.
        config: the architecture.
        classes: of its classifier; 0 for none.
        about: one paragraph.
        training: the recipe and data, in words.
        datasets: ids on the Hub of what it was trained on.
        recipe: the recipe as YAML, or nothing.
        published: the authors' numbers.
        published_note: which of them belong to this checkpoint.
        measured: numbers measured with this package.
        limits: where it fails, in sentences.
        proof: how the conversion was checked, for converted weights.
        differences: with it, layer -> largest difference.
        licence: its identifier on the Hub.
        licence_name: with "other", its name.
        licence_text: what is under it, in words.
        versions: of SimCLR, for the citation.
        base_model: the id of what it was fine-tuned from.
        task: the pipeline that shows it.
        processor: the image processor's options, if they are not the official ones.
        whitening: of h, if one comes with the weights.
    """

    name: str
    repo_id: str
    config: SimCLRConfig
    classes: int
    about: str
    training: str
    datasets: tuple[str, ...] = ()
    recipe: str = ""
    published: tuple[Result, ...] = ()
    published_note: str = ""
    measured: tuple[Result, ...] = ()
    limits: tuple[str, ...] = ()
    proof: str = ""
    differences: Mapping[str, float] | None = None
    licence: str = "apache-2.0"
    licence_name: str | None = None
    licence_text: str = ""
    versions: tuple[int, ...] = (1,)
    base_model: str | None = None
    task: str = "image-feature-extraction"
    processor: Mapping[str, Any] = field(default_factory=dict)
    whitening: Whitening | None = None

    @property
    def results(self) -> tuple[Result, ...]:
        """Those that name a data set on the Hub."""
        return tuple(result for result in (*self.published, *self.measured) if result.dataset_id)


def render(card: Card) -> str:
    """The card as Markdown, its metadata first.

    Raises:
        PublishError: the metadata would not be valid; says what is wrong.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown
    )
    environment.filters["cell"] = lambda value: " ".join(str(value).split()).replace("|", "\\|")  # of a table
    text = environment.get_template("card.md").render(
        card=card,
        config=card.config,
        counts=count(card.config, card.classes),
        encoder=describe(card.config),
        metadata=_metadata(card),
    )
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
    if problems := check_card(text):
        raise PublishError(f"{card.name}: the card is not valid: {'; '.join(problems)}")
    return text


def _metadata(card: Card) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=result.dataset_id,
            dataset_name=result.dataset,
            dataset_split=result.split or None,
            metric_type="accuracy",
            metric_name=result.measure,
            metric_value=result.value,
            metric_args={"command": result.command} if result.command else None,
            source_name=result.source or None,
            source_url=result.source_url or None,
        )
        for result in card.results
    ]
    data = ModelCardData(
        license=card.licence,
        license_name=card.licence_name,
        library_name="transformers",
        pipeline_tag=card.task,
        tags=["simclr", "self-supervised-learning", "contrastive-learning", "image-similarity"],
        datasets=list(card.datasets) or None,
        base_model=card.base_model,
        model_name=card.name,
        eval_results=results or None,
    )
    return data.to_yaml()


def eval_results(card: Card, benchmarks: Mapping[str, str]) -> dict[str, str]:
    """`.eval_results/*.yaml` of a repository, by name: results on data sets that the Hub treats as benchmarks.

    Args:
        card: whose numbers.
        benchmarks: data set's id -> its task's id.
    """
    files: dict[str, list[EvalResultEntry]] = {}
    for result in card.results:
        if task := benchmarks.get(result.dataset_id):
            entry = EvalResultEntry(
                result.dataset_id,
                task,
                result.value,
                source_url=result.source_url or None,
                source_name=result.source or None,
                notes=result.measure,
            )
            files.setdefault(f".eval_results/{result.dataset_id.rpartition('/')[2]}.yaml", []).append(entry)
    return {name: yaml.safe_dump(eval_result_entries_to_yaml(e), sort_keys=False) for name, e in files.items()}


def all_cards() -> dict[str, str]:
    """The text of the cards that are checked in, by name."""
    from .official_cards import official_card, pretrained  # both build on this module
    from .trained_cards import default_card

    official = {name: official_card(name, f"org/{name}") for name in pretrained()}
    return {name: render(card) for name, card in {"default": default_card(), **official}.items()}


def main(folder: Path) -> None:
    """Write them."""
    folder.mkdir(exist_ok=True)
    for name, text in all_cards().items():
        _write(folder / f"{name}.md", text)


def _write(path: Path, text: str) -> None:
    write_file(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "model_cards"))
