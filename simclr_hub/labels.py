"""Label photos by a few examples of each class: every example votes for its class by its likeness, in numpy.

Examples of one class that are alike count once together: weights solve (K + ridge) w = y, K being exp of the cosines
(kernel ridge regression). Of what was tried on few examples it was the most often right, see benchmarks/RESULTS.md:
on open-photos with five a class 57 % against 53 for weighted nearest neighbours and 52 for class means. How right a
label is, is estimated by leaving each example out, which the same solution gives without solving again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .notebook import MOST_OF_PART, Part, show_photos

#: Of the likeness exp((cosine - 1) / width): this share of the mean of 1 - cosine between examples.
WIDTH = 0.4
#: Added to an example's likeness to itself, more for classes with more examples, so that small ones are not drowned.
RIDGE = 0.3
#: Score that a class must surpass to be more likely than none of them; a photo unlike all examples has 0.
NONE = 0.1
#: Temperatures of scores to choose from; the last tells of nothing that is sure.
TEMPERATURES = np.geomspace(0.03, 1, 30)
#: A prediction is sure only if it is the more likely, and if those that are sure are wrong this much less often.
LEAST, RATIO = 0.5, 4.0
#: Examples beyond which a classifier should be trained: time grows by their cube.
MOST_EXAMPLES = 5000
#: Labels of a class, sure or unsure, that are shown to be checked, and about how many of all.
MOST_LABELS, MOST_LABELLED = 12, 1000
_ROWS = 1 << 12  # vectors that are labelled at a time


@dataclass(frozen=True)
class LeftOut:
    """Count what came of predicting examples that were held out or left out one by one.

    Attributes:
        examples: how many; those that are alone in their class cannot be left out.
        right: how many were predicted right.
        sure: how many with a confidence that counts as sure.
        sure_right: how many of these were right.
    """

    examples: int
    right: int
    sure: int
    sure_right: int

    @classmethod
    def of(cls, confidence: np.ndarray, right: np.ndarray, above: float) -> "LeftOut":
        """Count predictions (N,) by their confidence and whether they are right."""
        sure = confidence > above
        return cls(len(right), int(right.sum()), int(sure.sum()), int((sure & right).sum()))


@dataclass(frozen=True, eq=False)
class Examples:
    """Vectors of examples and their votes.

    Attributes:
        vectors: (M, D), of length 1.
        votes: (M, C), of each for each class.
        width: of the likeness.
        temperature: by which scores become confidences.
        sure_above: confidence above which a label is sure; 1 if the examples do not tell of any.
        left_out: what came of leaving each out.
    """

    vectors: np.ndarray
    votes: np.ndarray
    width: float
    temperature: float
    sure_above: float
    left_out: LeftOut

    @classmethod
    def learn(cls, vectors: np.ndarray, labels: np.ndarray, classes: int) -> "Examples":
        """Find the votes and, by leaving each example out, how far they are to be trusted.

        Args:
            vectors: (M, D), of length 1.
            labels: (M,), below `classes`; each occurs.
            classes: C, 2 or more.

        Raises:
            ValueError: fewer classes, one without examples, or more examples than `MOST_EXAMPLES`.
        """
        counts = np.bincount(labels, minlength=classes)
        if classes < 2 or not counts.all():
            raise ValueError("examples of two classes at least are needed, and one of each")
        if len(labels) > MOST_EXAMPLES:
            raise ValueError(f"{len(labels):,} examples are more than {MOST_EXAMPLES:,}: train a classifier on them")
        units = vectors.astype(np.float64)
        cosines = units @ units.T
        count = len(labels)
        width = WIDTH * max(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)), 1e-3)
        ridge = RIDGE * counts[labels] / counts.mean()
        inverse = np.linalg.inv(np.exp((cosines - 1) / width) + np.diag(ridge))
        of_class = np.eye(classes)[labels]
        votes = inverse @ of_class
        # What all others say of each example, as if solved without it.
        scores = (of_class - votes / np.diag(inverse)[:, None])[counts[labels] > 1]
        truth = labels[counts[labels] > 1]
        temperature = float(TEMPERATURES[-1])
        if len(truth):
            losses = [-np.log(_confidences(scores, t)[np.arange(len(truth)), truth] + 1e-12) for t in TEMPERATURES]
            temperature = float(TEMPERATURES[np.argmin(np.mean(losses, 1))])
        confidence, right = _confidences(scores, temperature).max(1), scores.argmax(1) == truth
        above = sure_above(confidence, right)
        left_out = LeftOut.of(confidence, right, above)
        return cls(vectors.astype(np.float32), votes.astype(np.float32), width, temperature, above, left_out)

    def confidences(
        self, vectors: np.ndarray, progress: Callable[[int, int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the two likeliest classes of vectors (N, D) of length 1, and their probabilities: (N, 2) each.

        Args:
            vectors: what is labelled.
            progress: called with (done, total) vectors.
        """
        classes = np.empty((len(vectors), 2), np.int64)
        probabilities = np.empty((len(vectors), 2))
        for start in range(0, len(vectors), _ROWS):
            some = vectors[start : start + _ROWS]
            likeness = np.exp((some @ self.vectors.T - 1) / np.float32(self.width))
            found = first_two(_confidences(likeness @ self.votes, self.temperature))
            classes[start : start + len(some)], probabilities[start : start + len(some)] = found
            if progress:
                progress(start + len(some), len(vectors))
        return classes, probabilities


def _confidences(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Turn scores (N, C) into probabilities (N, C), of which "none of them" has the rest."""
    return softmax(np.pad(scores, ((0, 0), (0, 1)), constant_values=NONE) / temperature)[:, :-1]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of each row of (N, C), float64."""
    powers = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares


def first_two(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two likeliest of two or more classes (N, C), and their probabilities: (N, 2) each."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
    return order, np.take_along_axis(probabilities, order, 1)


def sure_above(confidence: np.ndarray, right: np.ndarray) -> float:
    """Choose the confidence above which predictions are sure, from some whose truth is known.

    The least from `LEAST` on with which those above are wrong at most 1 / `RATIO` as often as those below. The former
    count with one standard error more (Wilson), the latter with one more wrong: few examples do not prove much.

    Args:
        confidence: (N,), of predictions that were not learnt from.
        right: (N,), whether they are right.

    Returns:
        It; 1, which none is above, if no confidence will do.
    """
    order = np.argsort(-confidence, kind="stable")
    falling, wrong = confidence[order], np.cumsum(~right[order])
    best = 1.0
    for i in np.flatnonzero((falling > LEAST) & (np.append(falling[1:], -1) < falling)).tolist():
        n, rest = i + 1, len(falling) - i - 1
        among_rest = min((wrong[-1] - wrong[i] + 1) / (rest + 1), 1)
        if _upper(int(wrong[i]), n) <= among_rest / RATIO:
            best = max(LEAST, (falling[i] + (falling[i + 1] if rest else LEAST)) / 2)
    return float(best)


def _upper(count: int, of: int) -> float:
    """Return a share and one standard error more, by Wilson."""
    share = count / of
    return float((share + 0.5 / of + np.sqrt(share * (1 - share) / of + 0.25 / of**2)) / (1 + 1 / of))


@dataclass(frozen=True)
class Label:
    """Tell what a photo was labelled.

    Attributes:
        path: of the photo, or its name.
        label: its class.
        confidence: the probability that it is; 1 for an example.
        unsure: look at it; None if nothing is known of how far the confidence is to be trusted.
        second: the second likeliest class.
        second_confidence: its probability.
        example: the label is not predicted but given.
    """

    path: str
    label: str
    confidence: float
    unsure: bool | None
    second: str
    second_confidence: float
    example: bool = False


@dataclass(frozen=True)
class Labels:
    """Tell what the photos of an index were labelled.

    Attributes:
        classes: their names.
        labels: of every photo, examples too, sorted by path.
        sure_above: see `Examples`.
        left_out: how right labels are, estimated by leaving each example out. It holds for photos that are like the
            examples: of classes that have none, nothing is known.
        examples: how many different ones there were.
        unreadable: examples that were left out, with why.
        contents: SHA-256 of each labelled photo's bytes, in the order of `labels`.
    """

    classes: Sequence[str]
    labels: Sequence[Label]
    sure_above: float
    left_out: LeftOut
    examples: int
    unreadable: Sequence[tuple[str, str]] = ()
    contents: Sequence[bytes] = ()

    def _repr_html_(self) -> str:
        """Show the labels to check, in a notebook."""
        left = self.left_out
        told = f", {left.right:,} of {left.examples:,} right when left out" if left.examples else ""
        title = f"{len(self.labels):,} photos labelled by {self.examples:,} examples{told}"
        parts = to_check(self.labels, self.classes, MOST_OF_PART)
        return show_photos(title, parts, len(parts))


def to_check(labels: Sequence[Label], classes: Sequence[str], most: int = MOST_LABELS) -> list[Part]:
    """Choose the labels to check: of each class the most confident, and the least confident of those that are unsure.

    Args:
        labels: of the photos; examples are left out.
        classes: their names, in the order of the parts.
        most: labels of a class, sure or unsure; fewer where there are many classes.
    """
    most = max(2, min(most, MOST_LABELLED // (2 * max(1, len(classes)))))
    of_class: dict[str, list[Label]] = {name: [] for name in classes}
    for label in labels:
        if not label.example:
            of_class[label.label].append(label)
    parts = []
    for name in classes:
        falling = sorted(of_class[name], key=lambda label: -label.confidence)
        unsure = [label for label in reversed(falling) if label.unsure]
        sure = [label for label in falling if not label.unsure]
        for word, some in (("" if sure and sure[0].unsure is None else "sure", sure), ("unsure", unsure)):
            if some:
                photos = [
                    (one.path, f"{one.confidence:.2f}", f"or {one.second}: {one.second_confidence:.2f}")
                    for one in some[:most]
                ]
                parts.append(Part(f"{name}: {len(some):,} {word}".rstrip(), photos, len(some)))
    return parts
