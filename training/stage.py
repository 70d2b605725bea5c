"""stage(): one folder with everything a model needs on the Hub, and nothing else.

What may go in is listed; a file of any other name is refused. Then every staged byte is looked at again: weights must
be safetensors from the first byte to the last, which no pickle is, and text must hold no absolute path and no secret.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open

from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import CheckpointError, PublishError
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.loading import own_whitening, weights_hash
from simclr_hub.model_folder import inside, read_json, weight_files
from simclr_hub.modeling_simclr import SimCLRForImageClassification, SimCLRModel
from simclr_hub.progress import quiet_transformers
from simclr_hub.whitening import WHITENING_NAMES, Whitening

CODE = (
    "configuration_simclr.py",
    "modeling_simclr.py",
    "image_processing_simclr.py",
    "model_folder.py",
    "pixels.py",
    "headers.py",
)
#: The library's classes by the Auto class that finds them in a repository.
AUTO_MAP = {
    "AutoConfig": "configuration_simclr.SimCLRConfig",
    "AutoModel": "modeling_simclr.SimCLRModel",
    "AutoBackbone": "modeling_simclr.SimCLRBackbone",
    "AutoImageProcessor": "image_processing_simclr.SimCLRImageProcessor",
}
CLASSIFIER = {"AutoModelForImageClassification": "modeling_simclr.SimCLRForImageClassification"}

INDEX = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
#: Whitenings, which may be there.
WHITENINGS = tuple(WHITENING_NAMES.values())
_TEXT = re.compile(
    r"README\.md|LICENSE|config\.json|preprocessor_config\.json|source\.json|\.eval_results/[\w.-]+\.yaml|"
    + "|".join(map(re.escape, (INDEX, *CODE)))
)
# What else of a model's directory is read for publishing.
_COPIED = ("LICENSE", "README.md", "preprocessor_config.json", "recipe.yaml", "results.json", "source.json")
# A slash that starts a name and is not part of a URL, a tag or a fraction, and at least one more name after it; or one
# of the places where people's files lie; or a drive.
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/~<>)\]-])/(?:[\w.@+-]+/+[\w.@+-]+|(?:home|Users|Volumes|root|tmp|mnt|media|scratch|data)\b)"
    r"|file:/|(?<!\w)[A-Za-z]:\\+\w"
)
_SECRET = re.compile(
    r"(?<!\w)(?:hf_\w{20,}|api_org_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.)|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_?KEY")


@dataclass(frozen=True)
class Source:
    """A directory of `save_pretrained`, looked at and loaded once.

    Args:
        directory: where it is.
        config: its architecture.
        classifier: whether it has one.
        weights: its safetensors files and, with more than one, their index.
        processor: its preprocessor_config.json, without the class.
        whitenings: by file name.
    """

    directory: Path
    config: SimCLRConfig
    classifier: bool
    weights: tuple[str, ...]
    processor: dict[str, Any]
    whitenings: dict[str, Whitening]

    @classmethod
    def open(cls, directory: Path) -> "Source":
        """Load the model to be sure that its weights are complete, finite and belong to its config.

        Raises:
            CheckpointError: they are not, or there are none in safetensors; a whitening is damaged or of others; or a
                file is a link that leads out of the directory.
            PublishError: its image processor is not this package's.
        """
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory}: no config.json there; give a directory of save_pretrained")
        try:
            weights = _weights(directory)
            for name in _COPIED:
                if os.path.lexists(directory / name):
                    inside(directory / name)
            config: SimCLRConfig = SimCLRConfig.from_pretrained(directory, local_files_only=True)
            classifier = any(name.startswith("classifier.") for name in _tensor_names(directory, weights))
            with quiet_transformers():
                model = (SimCLRForImageClassification if classifier else SimCLRModel).from_pretrained(
                    directory, local_files_only=True, dtype=torch.float32
                )
        except CheckpointError:
            raise
        except Exception as e:  # transformers and safetensors raise OSError, ValueError, RuntimeError, ...
            raise CheckpointError(f"{directory}: {e}") from e
        encoder = model.simclr if classifier else model
        whitenings = {
            name: own_whitening(directory / name) for name in WHITENINGS if os.path.lexists(directory / name)
        }
        for name, whitening in whitenings.items():
            if whitening.weights not in ("", weights_hash(encoder)) or WHITENING_NAMES[whitening.layer] != name:
                raise CheckpointError(f"{directory / name}: learnt with other weights; learn it again or remove it")
        return cls(directory, config, classifier, weights, _processor(directory, config), whitenings)


def _weights(directory: Path) -> tuple[str, ...]:
    """List the weights' files and, with more than one, their index.

    Raises:
        CheckpointError: there are none in safetensors, or they lie elsewhere.
    """
    try:
        names = tuple(file.name for file in weight_files(directory))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{e}; only safetensors are published, no pickles") from e
    for name in names:
        if not WEIGHTS.fullmatch(name):
            raise CheckpointError(f"{directory}: {INDEX} names {name!r}, which is no shard's name")
    return names if names == ("model.safetensors",) else (*names, INDEX)


def weights_sha256(directory: Path) -> str:
    """Hash the weights as results.json names them: SHA-256 of model.safetensors, or of its shards one after another.

    Raises:
        CheckpointError: there are none in safetensors.
    """
    digest = hashlib.sha256()
    for name in _weights(directory):
        if name != INDEX:
            with (directory / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _tensor_names(directory: Path, weights: tuple[str, ...]) -> Iterator[str]:
    for name in weights:
        if name != INDEX:
            with safe_open(directory / name, "pt") as file:
                yield from file.keys()


def _processor(directory: Path, config: SimCLRConfig) -> dict[str, Any]:
    """Render preprocessor_config.json, which leaves its class to config.json's auto_map.

    With a class named here, transformers' pipelines look for a video processor of the same name, and so ask whether
    code of the repository may run, of people, too, who have this package installed.
    """
    path = directory / "preprocessor_config.json"
    if path.is_file():
        found = read_json(path)
    else:
        found = json.loads(SimCLRImageProcessor(size=config.image_size).to_json_string())
    kind = found.pop("image_processor_type", "SimCLRImageProcessor")
    if kind != "SimCLRImageProcessor":
        raise PublishError(f"{path}: image_processor_type is {kind!r}; the published code has SimCLRImageProcessor")
    found.pop("auto_map", None)
    return found


def stage(
    source: Source,
    out: Path,
    card: str,
    *,
    extra: Mapping[str, str] | None = None,
    licence: str = "apache-2.0",
    link: bool = False,
) -> None:
    """Fill the empty directory `out` and check it.

    Args:
        source: the model.
        out: an existing, empty directory.
        card: README.md, with its metadata.
        extra: further text files by name, such as `.eval_results/imagenet.yaml`.
        licence: its identifier on the Hub; with "apache-2.0" the text is added if the source has no LICENSE.
        link: link to the weights, which are large, instead of copying them.

    Raises:
        PublishError: something that must not leave was found; names it.
    """
    # Every Auto class is named. `save_pretrained` writes that of the class being saved only, and then `AutoModel`, and
    # with it `pipeline("image-feature-extraction")`, fails on a classifier's directory.
    auto_map = AUTO_MAP | (CLASSIFIER if source.classifier else {})
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    for key in (
        "_name_or_path",
        "name_or_path",
        "use_cache",
    ):  # where it was loaded from; and what has no meaning here
        config.pop(key, None)
    text = {
        **texts(card),
        **(extra or {}),
        "config.json": _json(config | {"auto_map": auto_map}),
        "preprocessor_config.json": _json(source.processor),
    }
    if (source.directory / "LICENSE").is_file():
        text["LICENSE"] = (source.directory / "LICENSE").read_text(encoding="utf-8")
    elif licence != "apache-2.0":
        del text["LICENSE"]
    for name, content in text.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(content, encoding="utf-8", newline="\n")
    for name in (*source.weights, *source.whitenings):
        _place((source.directory / name).resolve(), out / name, link)
    check_staged(out)


def texts(card: str) -> dict[str, str]:
    """Return what does not depend on the weights, by name: the card, the code and the licence."""
    code = {name: (files("simclr_hub") / name).read_text(encoding="utf-8") for name in CODE}
    return {"README.md": card, "LICENSE": apache_licence(), **code}


def _place(file: Path, target: Path, link: bool) -> None:
    if link:
        try:
            return target.symlink_to(file)
        except OSError:  # Windows, without the privilege
            pass
    shutil.copyfile(file, target)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def apache_licence() -> str:
    """Return the Apache License 2.0 as this package carries it."""
    for distribution in metadata.distributions(name="simclr-hub"):
        text = distribution.read_text("licenses/LICENSE")
        if text:
            return text
    return (Path(str(files("simclr_hub"))).parent / "LICENSE").read_text(encoding="utf-8")  # a clone


def check_staged(folder: Path) -> None:
    """Refuse a folder with anything in it that must not leave.

    Raises:
        PublishError: a file that is not on the list, is no safetensors or no text, or holds a path or a secret.
    """
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper()) and len(value) >= 16}
    secrets.add(huggingface_hub.get_token() or "")
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        if WEIGHTS.fullmatch(name) or name in WHITENINGS:
            content = _safetensors_text(path, name)
        elif _TEXT.fullmatch(name):
            try:
                content = path.read_bytes().decode()
            except UnicodeDecodeError as e:
                raise PublishError(f"{name} is not text: {e}") from e
        else:
            raise PublishError(f"{name} is not a file that a model repository of this package has; remove it")
        if found := _ABSOLUTE_PATH.search(content):
            raise PublishError(f"{name} holds a path of this machine: {_excerpt(content, found)}")
        if _SECRET.search(content) or any(secret and secret in content for secret in secrets):
            raise PublishError(f"{name} holds what looks like a token or a key; remove it and revoke it")


def _safetensors_text(path: Path, name: str) -> str:
    """Return the words in a safetensors file: its metadata and the tensors' names."""
    try:
        with safe_open(path, "pt") as file:  # refuses a file whose header does not account for every byte
            return "\n".join([*file.keys(), *(f"{k}={v}" for k, v in (file.metadata() or {}).items())])
    except (SafetensorError, OSError) as e:
        raise PublishError(f"{name} is not a complete safetensors file: {e}") from e


def _excerpt(content: str, found: re.Match[str]) -> str:
    line = content[content.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0].strip()
    return repr(line[:120])
