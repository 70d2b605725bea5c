"""The card of an official checkpoint: the catalog's facts, how it was trained, and how its conversion was checked.

The words are in templates/official.yaml.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from simclr_hub.checkpoints.catalog import CatalogEntry, config_of, entries

from .cards import TEMPLATES, Card, Result

_IMAGENET = "ILSVRC/imagenet-1k"


@cache
def words() -> dict[str, Any]:
    """Load templates/official.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((TEMPLATES / "official.yaml").read_text(encoding="utf-8"))
    return loaded


def pretrained() -> list[str]:
    """List the names whose cards are checked in: v1's 3 and v2's 13."""
    return sorted(name for name, entry in entries().items() if entry.training == "pretrained")


def official_card(name: str, repo_id: str, source: Mapping[str, Any] | None = None) -> Card:
    """Make the card of the official checkpoint `name`.

    Args:
        name: of the catalog.
        repo_id: "org/name".
        source: what `source.json` beside converted weights holds: `sha256`, `url`, `step`. Without it the card says
            that the hash is filled in on publishing.
    """
    entry = entries()[name]
    kind = entry.training.partition("-")[0]
    organisation, base = repo_id.partition("/")[0], name.removesuffix(f"-{entry.training}")
    architecture = f"ResNet-{entry.depth} ({entry.width_multiplier}x)"
    links = {"paper": words()["papers"][f"v{entry.version}"], "code": words()["code"]}
    return Card(
        name=name,
        repo_id=repo_id,
        config=config_of(entry),
        classes=1000,
        about=words()["about"].format(
            version=f"v{entry.version}",
            architecture=architecture + (" with selective kernels" if entry.selective_kernel else ""),
            what=words()["what"][entry.training],
            **links,
        ),
        training=words()["training"].format(
            recipe=words()["recipes"][f"v{entry.version} {kind}"].format(
                from_g=words()["from_g"] if entry.classifier_layer else "",
                epochs=60 if entry.training == "finetuned-1pct" else 30,
            ),
            step=words()["step"].format(step=entry.step) if entry.sources["step"] != "unverified" else "",
            **links,
        ),
        datasets=(_IMAGENET,),
        published=tuple(_published(entry)),
        published_note=_note(entry),
        proof=words()["proof"].format(origin=_origin(entry, source)),
        differences=_differences(entry),
        licence_text=words()["licence"],
        versions=(entry.version,) if entry.version == 1 else (2, 1),
        base_model=f"{organisation}/{base}" if kind in ("finetuned", "distilled") else None,
        task="image-feature-extraction" if kind == "pretrained" else "image-classification",
    )


def _published(entry: CatalogEntry) -> list[Result]:
    source = _source(entry.sources["top1"])
    results = [
        Result(
            f"top-1 accuracy (%), {words()['protocols'][protocol]}",
            value,
            "ImageNet-1k, validation",
            **source,
            dataset_id=_IMAGENET,
            split="validation",
        )
        for protocol, value in entry.top1.items()
    ]
    if "arXiv" in entry.sources["parameters"]:  # v1's are counted
        measure = "parameters of f in millions, BatchNorm's moving statistics counted"
        results.append(Result(measure, entry.parameters // 10**6, "-", **_source(entry.sources["parameters"])))
    return results


def _source(text: str) -> dict[str, str]:
    """Name and address in the catalog's "arXiv 2006.10029, table 1" or "google-research/simclr, README: https://..."."""
    paper, page = re.match(r"arXiv (\d+\.\d+)", text), re.fullmatch(r"(.+): (https://\S+)", text)
    if paper:
        return {"source": text, "source_url": f"https://arxiv.org/abs/{paper[1]}"}
    if page:
        return {"source": page[1], "source_url": page[2]}
    raise ValueError(f"the catalog's source {text!r} is neither a paper on arXiv nor a page with its address")


def _note(entry: CatalogEntry) -> str:
    """Say where the numbers are that people take for a pretrained checkpoint's, and what nobody has published."""
    if entry.training != "pretrained":
        return "" if entry.top1 else str(words()["no_numbers"])
    numbers = "; ".join(
        "{} % {} (`{}`, [{source}]({source_url}))".format(
            value, words()["protocols"][protocol], name, **_source(other.sources["top1"])
        )
        for name, other in entries().items()
        if name.startswith(f"{entry.name}-finetuned-")
        for protocol, value in other.top1.items()
    )
    note: str = words()["note"].format(numbers=numbers)
    return note


def _origin(entry: CatalogEntry, source: Mapping[str, Any] | None) -> str:
    if source:
        known: str = words()["origin"].format(**source)
        return known
    unknown: str = words()["origin_unknown"].format(url=f"https://storage.googleapis.com/{entry.location}")
    return unknown


def _differences(entry: CatalogEntry) -> dict[str, float]:
    """Return each layer's difference on the fixture with this kind of block; g's on the one that has a g."""
    measured: dict[str, dict[str, float]] = words()["differences"]
    with_g = measured["v2_sk1_head3"]
    body = dict(with_g if entry.selective_kernel else measured["v1_sk0_nohead"])
    logits = body.pop("logits")
    layers = config_of(entry).projection_layers
    g = {f"proj_{j}": with_g[f"proj_{j}"] for j in range(1, layers + 1)}
    return {k: v for k, v in body.items() if not k.startswith("proj_")} | g | {"logits": logits}
