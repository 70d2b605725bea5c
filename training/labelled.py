"""Labelled images: what has the labels and what is evaluated on, and which of the labels are used."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simclr_hub.errors import RecipeError
from simclr_hub.images import FileBytes
from simclr_hub.progress import progress_bar
from simclr_hub.scan import Rules

from .data import FolderRows, JoinedRows, Rows, open_rows
from .pretrain import _sources, rules_of
from .trainer import shown

#: Share of each class that is held out where there is no split to evaluate on, or to choose l2 on.
HELD_OUT = 0.1


@dataclass
class Part:
    """Labelled images of a source: those at `chosen`, of class `labels` there.

    Attributes:
        source: a folder, a data set's id, or several.
        split: of it.
        rows: all its images.
        labels: (N,) classes of all, -1 where there is none; the first of several.
        chosen: places of those that are used, rising.
        unreadable: place -> why it is left out.
        several: (N, C) bool, which classes each image shows, where one may show several.
    """

    source: str | list[str]
    split: str
    rows: FolderRows | Rows | JoinedRows
    labels: np.ndarray
    chosen: np.ndarray
    unreadable: dict[int, str] = field(default_factory=dict)
    several: np.ndarray | None = None

    @classmethod
    def open(cls, source: str | list[str], split: str, rules: Rules, several: bool = False) -> "Part":
        """Open a source.

        Args:
            source: a folder, a data set's id, or several.
            split: of it.
            rules: what of a folder is left out.
            several: an image may show several classes: those of its list, or of all class folders that hold the file.

        Raises:
            RecipeError: it cannot be opened, or has no labels, or lists of them that are not wanted.
        """
        rows = open_rows(source, split, rules)
        if rows.several is not None and not several:
            raise RecipeError(
                f"data={source}: its images have several labels each, for protocols=linear_features metric=map11 alone"
            )
        if several:
            return cls._with_several(source, split, rows)
        labels = np.array([] if rows.labels is None else rows.labels, dtype=np.int64)
        if not (labels >= 0).any():
            raise RecipeError(f"data={source}: split {split} has no labels; put the images of each class in a folder")
        return cls(source, split, rows, labels, np.flatnonzero(labels >= 0))

    @classmethod
    def _with_several(cls, source: str | list[str], split: str, rows: FolderRows | Rows | JoinedRows) -> "Part":
        places, lists = np.arange(len(rows)), rows.several
        if lists is None:
            places, lists = several_labels(rows, rows.labels or [])
        several = np.zeros((len(rows), len(rows.classes)), dtype=bool)
        for place, classes in zip(places.tolist(), lists, strict=True):
            several[place, [label for label in classes if label >= 0]] = True
        if not several.any():
            raise RecipeError(f"data={source}: split {split} has no labels; put the images of each class in a folder")
        return cls(source, split, rows, several.argmax(1), places, several=several)

    def of(self, chosen: np.ndarray) -> "Part":
        """Return the part with others of its images chosen."""
        return replace(self, chosen=chosen, unreadable={})

    def targets(self, places: np.ndarray) -> np.ndarray:
        """Return the classes of some images, (n,), or (n, C) of 0 and 1 where one may show several."""
        return self.labels[places] if self.several is None else self.several[places].astype(np.int64)

    def renamed(self, place: Mapping[str, int]) -> None:
        """Number the classes as another part does: name -> class; one that is not there is none."""
        to_ours = [place.get(name, -1) for name in self.rows.classes]
        self.labels = np.array([*to_ours, -1])[self.labels]
        if self.several is not None:
            theirs, self.several = self.several, np.zeros((len(self.several), len(place)), dtype=bool)
            for label, ours in enumerate(to_ours):
                if ours >= 0:
                    self.several[:, ours] = theirs[:, label]

    def name(self, place: int) -> str:
        """Return an image's path or name."""
        row = self.rows[int(place)]
        return row.name if isinstance(row, FileBytes) else str(row)

    def told(self) -> dict[str, Any]:
        """Return what results.json says of it."""
        shown = self.labels[self.chosen] if self.several is None else np.nonzero(self.several[self.chosen])[1]
        return {
            "source": self.source,
            "dataset": None if _is_folder(self.source) else self.source,  # its id on the Hub
            "split": self.split,
            "images": len(self.chosen) - len(self.unreadable),
            "unreadable": [self.unreadable[place] for place in sorted(self.unreadable)],
            "classes": len(np.unique(shown)),
            "version": self.rows.version,
        }


def _is_folder(source: str | list[str]) -> bool:
    return isinstance(source, list) or os.path.exists(os.path.expanduser(source))


def several_labels(rows: FolderRows | Rows | JoinedRows, labels: Sequence[int]) -> tuple[np.ndarray, list[list[int]]]:
    """Take files of the same content, in several class folders, for one image with several labels.

    Returns:
        The place of the first file of each content, rising; and the classes of each, none twice.
    """
    found: dict[bytes, tuple[int, list[int]]] = {}
    with progress_bar("comparing files", len(labels)) as advance:
        for place, label in enumerate(labels):
            row = rows[place]
            try:
                data = row.data if isinstance(row, FileBytes) else Path(row).read_bytes()
                key = hashlib.sha256(data).digest()
            except OSError:  # told when its features are computed
                key = str(row).encode(errors="surrogateescape")
            _, classes = found.setdefault(key, (place, []))
            if label >= 0 and label not in classes:
                classes.append(label)
            advance(1)
    return np.array([place for place, _ in found.values()], dtype=np.int64), [some for _, some in found.values()]


def share_of_each_class(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of each class, one image at least where there are two: places (n,), rising."""
    random = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        count = max(1, round(share * len(places))) if len(places) > 1 else 0
        drawn.append(places[:count])
    return np.sort(np.concatenate(drawn))


def class_balanced(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """Draw `total` images, of each class as many or one more, as ImageNet's official subsets: places (n,), rising.

    A class with fewer images gives all. With one seed what is drawn for a smaller total is among that of a larger one.
    """
    random = np.random.default_rng(seed)
    classes = random.permutation(np.unique(labels))
    each, more = divmod(total, len(classes))
    drawn = [
        random.permutation(np.flatnonzero(labels == label))[: each + (rank < more)]
        for rank, label in enumerate(classes)
    ]
    return np.sort(np.concatenate(drawn))


def open_parts(settings: Mapping[str, Any]) -> tuple[Part, Part, list[str], list[str]]:
    """Open what has the labels and what is evaluated on.

    Returns:
        Both, the names of the classes, and what is to be told.

    Raises:
        RecipeError: one of them cannot be opened, or there are no labels, or classes that the other does not have.
    """
    rules, seed, several = rules_of(settings), settings["seed"], settings.get("metric") == "map11"
    train = Part.open(_sources(settings["data"]), settings["split"], rules, several)
    classes, notes = train.rows.classes, list(train.rows.notes)
    evaluation = evaluation_part(settings, train, rules, several)
    if evaluation is None:
        held_out = train.chosen[share_of_each_class(train.labels[train.chosen], HELD_OUT, seed)]
        evaluation = train.of(held_out)
        train = train.of(np.setdiff1d(train.chosen, held_out))
        notes.append(
            f"no labelled split to evaluate on: {len(held_out):,} images, a tenth of each class, are held out"
        )
    else:
        notes += evaluation.rows.notes
    train.chosen, told = labelled(train, settings["labels"], seed)
    if not len(train.chosen) or len(evaluation.chosen) < 2:
        raise RecipeError("too few labelled images: one to learn from and two to evaluate on are the least")
    return train, evaluation, classes, notes + told


def evaluation_part(settings: Mapping[str, Any], train: Part, rules: Rules, several: bool = False) -> Part | None:
    """Open the split to evaluate on, with the classes of what is learnt from; None if there is none.

    Raises:
        RecipeError: it cannot be opened, has no labels, or classes that the other does not have.
    """
    evaluation = _evaluation(settings, train, rules, several)
    if evaluation is None:
        return None
    place = {name: i for i, name in enumerate(train.rows.classes)}
    theirs = evaluation.rows.classes
    used = np.unique(evaluation.labels[evaluation.chosen])
    if evaluation.several is not None:
        used = np.flatnonzero(evaluation.several.any(0))
    if strange := [theirs[label] for label in used if theirs[label] not in place]:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise RecipeError(f"split {train.split} has no class {', '.join(map(shown, strange[:3]))}{more}")
    evaluation.renamed(place)
    return evaluation


def _evaluation(settings: Mapping[str, Any], train: Part, rules: Rules, several: bool) -> Part | None:
    """Open the split to evaluate on: the one that is given, else the first of the usual ones with labels."""
    source, split = _sources(settings["eval_data"] or settings["data"]), settings["eval_split"]
    if split:
        found = Part.open(source, split, rules, several)
        if found.rows.version == train.rows.version and source == train.source:
            raise RecipeError(f"eval_split={split} is what is learnt from; give another, or leave it out")
        return found
    for usual in ("validation", "test", *(["train"] if settings["eval_data"] else [])):
        if settings["eval_data"] or usual != train.split:
            try:
                return Part.open(source, usual, rules, several)
            except RecipeError as e:
                why = e
    if settings["eval_data"]:
        raise why
    return None


def labelled(train: Part, labels: str | None, seed: int) -> tuple[np.ndarray, list[str]]:
    """Choose the images whose labels are used.

    Args:
        train: what there is.
        labels: None for all; a share such as "1%", class-balanced; a number for each class; or a file with a file name
            a line, as ImageNet's official subsets are, which are compared without their folders.
        seed: of the draw.

    Returns:
        Their places, and what is to be told.

    Raises:
        RecipeError: none of these, or nothing is left.
    """
    there = train.chosen
    of_class = train.labels[there]
    if labels is None:
        return there, []
    if train.several is not None and re.fullmatch(r"[\d.]+ ?%?", labels):
        raise RecipeError(f"labels={labels}: of images with several labels give a file of file names")
    if found := re.fullmatch(r"(\d{1,3}(?:\.\d+)?) ?%", labels):
        share = float(found[1]) / 100
        total = round(share * len(there))
        if share > 1 or total < 1:
            raise RecipeError(f"labels={labels} of {len(there):,} images are {total:,}")
        chosen = there[class_balanced(of_class, total, seed)]
    elif re.fullmatch(r"[1-9]\d{0,8}", labels):
        chosen = there[class_balanced(of_class, int(labels) * len(np.unique(of_class)), seed)]
    else:
        return _listed_in(labels, train)
    counts = np.bincount(train.labels[chosen], minlength=int(of_class.max()) + 1)[np.unique(of_class)]
    fewest, most = int(counts.min()), int(counts.max())
    each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return chosen, [f"labels={labels}: {len(chosen):,} images, {each} of each class (seed {seed})"]


def _listed_in(file: str, train: Part) -> tuple[np.ndarray, list[str]]:
    """Choose the images whose file names stand in a file, one a line."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as e:
        raise RecipeError(f"labels={shown(file)}: not 1%, 10% or a number, and no text file: {e}") from e
    wanted = {os.path.basename(line.strip()) for line in lines} - {""}
    named: dict[str, int] = {}
    for place in train.chosen.tolist():
        name = os.path.basename(train.name(place))
        if name in wanted and named.setdefault(name, place) != place:
            raise RecipeError(f"labels={shown(file)}: {shown(name)} is the name of several images")
    if not named:
        raise RecipeError(f"labels={shown(file)}: none of its {len(wanted):,} names is of a training image")
    missing = len(wanted) - len(named)
    told = f"labels={file}: {len(named):,} images" + (f"; names of no training image: {missing:,}" if missing else "")
    return np.sort(np.array(list(named.values()))), [told]
