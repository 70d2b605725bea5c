"""check_card(): whether a model card's metadata is what the Hub accepts, without the network.

Source: the Hub's model card specification and its list of licence identifiers (huggingface/hub-docs, `modelcard.md`,
`docs/hub/repositories-licenses.md`).
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from transformers.pipelines import get_supported_tasks

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
    """What is wrong with a card, each as one line; empty if it is valid.

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
    if base is not None and not (isinstance(base, str) and _ID.fullmatch(base)):
        yield f"base_model: {base!r} is no model's id"


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
