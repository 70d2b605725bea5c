"""Model cards: what one says, how it is rendered, and whether the Hub would take it, without asking.

A number without a source or a command cannot be made: `Result` refuses it. The checked-in cards of model_cards/ are
written by scripts/render_cards.py. Source of the checks: the Hub's model card specification and its list of licence
identifiers (huggingface/hub-docs, `modelcard.md`, `docs/hub/repositories-licenses.md`).
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers.pipelines import get_supported_tasks

from simclr_hub.configuration_simclr import DEPTHS, SimCLRConfig
from simclr_hub.errors import PublishError
from simclr_hub.modeling_simclr import SimCLRForImageClassification, SimCLRModel
from simclr_hub.whitening import Whitening


@dataclass(frozen=True)
class Counts:
    """Parameters of the parts, and multiply-adds of f for one image at the config's size."""

    encoder: int
    projection: int
    classifier: int
    macs: int


def count(config: SimCLRConfig, classes: int) -> Counts:
    """Count on the meta device, where weights take no memory."""
    config = SimCLRConfig.from_dict(config.to_dict())
    config.num_labels = classes
    with torch.device("meta"):
        model = SimCLRForImageClassification(config) if classes else SimCLRModel(config)
    body: SimCLRModel = model.simclr if isinstance(model, SimCLRForImageClassification) else model
    pixels = torch.empty(1, config.num_channels, config.image_size, config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body.eval().encoder(pixels)
    encoder, projection, everything = (
        sum(p.numel() for p in m.parameters()) for m in (body.encoder, body.projection, model)
    )
    return Counts(encoder, projection, everything - encoder - projection, counter.get_total_flops() // 2)


def describe(config: SimCLRConfig) -> str:
    """Describe the encoder in words."""
    blocks = tuple(config.depths)
    depth = next(
        (d for d, b in DEPTHS.items() if b == blocks and (d >= 50) == (config.layer_type == "bottleneck")), None
    )
    words = [f"ResNet-{depth}" if depth else f"{config.layer_type} ResNet", f"width {config.width_multiplier:g}x"]
    words.append(f"blocks {'-'.join(map(str, blocks))}")
    if config.sk_ratio:
        words.append("selective kernels, ResNet-D stem and shortcuts")
    if config.se_ratio:
        words.append("squeeze-and-excitation")
    if config.stem_type != "imagenet":
        words.append(
            {"cifar": "3x3 stem without stride or pool", "small": "3x3 stem of stride 2 without pool"}[
                config.stem_type
            ]
        )
    return ", ".join(words)


LICENCES = frozenset(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr unknown other""".split()
)
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_URL = re.compile(r"https://\S+")


def check_card(text: str) -> list[str]:
    """List what is wrong with a card, a line each; empty if it is valid.

    Beyond the Hub's rules each number in `model-index` must have a source or the command that measured it.
    """
    match = re.match(r"---\n(.*?)\n---\n", text, re.S)
    if not match:
        return ["no metadata: the card must start with a block between two lines ---"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as e:
        return [f"metadata is not YAML: {' '.join(str(e).split())}"]
    if not isinstance(data, dict):
        return [f"metadata must be keys and values, not {type(data).__name__}"]
    return [*_check_keys(data), *_check_index(data.get("model-index"))]


def _check_keys(data: dict[str, Any]) -> Iterator[str]:
    for key in ("license", "library_name", "pipeline_tag", "tags"):
        if not data.get(key):
            yield f"{key} is missing"
    if data.get("license") not in LICENCES:
        yield f"license: {data.get('license')!r} is no licence identifier of the Hub, such as apache-2.0 or other"
    if data.get("license") == "other" and not data.get("license_name"):
        yield "license: other needs a license_name"
    if data.get("pipeline_tag") not in get_supported_tasks():
        yield f"pipeline_tag: {data.get('pipeline_tag')!r} is no task of transformers"
    if data.get("library_name") != "transformers":
        yield f"library_name: {data.get('library_name')!r} is not transformers, which loads these models"
    for key in ("tags", "datasets"):
        value = data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            yield f"{key}: {value!r} is not a list of words"
        elif key == "datasets":
            yield from (f"datasets: {item!r} is no data set's id" for item in value if not _ID.fullmatch(item))
    base = data.get("base_model")
    for one in base if isinstance(base, list) else [] if base is None else [base]:
        if not (isinstance(one, str) and _ID.fullmatch(one)):
            yield f"base_model: {one!r} is no model's id"


def _check_index(index: Any) -> Iterator[str]:
    if index is None:
        return
    if not isinstance(index, list) or not index:
        yield f"model-index: {index!r} is not a list with a model in it"
        return
    for model in index:
        name, results = (model.get("name"), model.get("results")) if isinstance(model, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(results, list) or not results:
            yield f"model-index: {model!r} needs a name and results"
            continue
        for result in results:
            yield from _check_result(result)


def _check_result(result: Any) -> Iterator[str]:
    def field(*keys: str) -> Any:
        value = result
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    for keys in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
        if not isinstance(field(*keys), str) or not field(*keys):
            yield f"model-index: a result lacks its {'.'.join(keys)}"
    source = field("source", "url")
    if source is not None and not (isinstance(source, str) and _URL.fullmatch(source)):
        yield f"model-index: source {source!r} is no https address"
    metrics = field("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield "model-index: a result has no metrics"
        return
    for metric in metrics:
        value = metric.get("value") if isinstance(metric, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(metric.get("type"), str):
            yield f"model-index: {metric!r} needs a type and a number"
        elif not source and not (metric.get("args") or {}).get("command"):
            yield f"model-index: {metric['type']} {value} has neither a source nor a command"


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
        metric: its type in `model-index`.

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
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
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
        base_model: the id of what it was fine-tuned from or taught by, or several.
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
    base_model: str | list[str] | None = None
    task: str = "image-feature-extraction"
    processor: Mapping[str, Any] = field(default_factory=dict)
    whitening: Whitening | None = None

    @property
    def results(self) -> tuple[Result, ...]:
        """Return the results that name a data set on the Hub."""
        return tuple(result for result in (*self.published, *self.measured) if result.dataset_id)


def render(card: Card) -> str:
    """Render the card as Markdown, its metadata first.

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
            metric_type=result.metric,
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
    """Render a repository's `.eval_results/*.yaml`, by name: results on the Hub's benchmark data sets.

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
