"""Which images an epoch shows, how often each, and in which order.

An epoch is a function of the seed, its number and, with ``--image-weights``, the AP of the classes in the last
evaluation, so it is the same in every process and after a resume.

Shape letters: N images, S pictures of an epoch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.labels.annotations import Annotations
from utils.config import option


@dataclass(frozen=True)
class SamplingOptions:
    """Which images an epoch shows how often."""

    image_weights: bool = option(False, "draw the images of an epoch, those with classes of low AP more often")
    class_balanced: float = option(
        0.0,
        "repeat images with classes that fewer than this share of the images have (LVIS: 0.001); 0: no repetition",
        bare="0.001",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.class_balanced <= 1:
            raise ValueError(f"--class-balanced is a share of the images, 0..1, not {self.class_balanced}")
        if self.image_weights and self.class_balanced:
            raise ValueError("--image-weights and --class-balanced both say how often an image is shown; leave one out")


class EpochSampler:
    """Draws the images of an epoch; the run sets ``class_ap`` before each."""

    def __init__(self, annotations: Annotations, options: SamplingOptions) -> None:
        self.options = options
        self.num_images = len(annotations)
        self.class_ap: Sequence[float] = ()  # [C] of the last evaluation, -1 where not defined; empty before the first
        if options.image_weights:
            self.objects = objects_per_image(annotations)
        if options.class_balanced:
            self.factors = repeat_factors(objects_per_image(annotations), options.class_balanced)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return the images [S] of an epoch in their order, each once unless the options say otherwise."""
        if self.options.image_weights:
            return rng.choice(self.num_images, self.num_images, p=image_weights(self.objects, self.class_ap))
        if self.options.class_balanced:
            return rng.permutation(np.repeat(np.arange(self.num_images), rounded_at_random(self.factors, rng)))
        return rng.permutation(self.num_images)

    @property
    def num_pictures(self) -> int:
        """Length S of what :meth:`draw` returns."""
        return round(float(self.factors.sum())) if self.options.class_balanced else self.num_images

    def note(self) -> str:
        """Return in one line what an epoch shows; "" where it shows each image once."""
        if self.options.image_weights:
            return "--image-weights: images are drawn by the AP of their classes; those without objects are not shown"
        if not self.options.class_balanced:
            return ""
        return (
            f"--class-balanced {self.options.class_balanced:g}: an epoch shows {self.num_images:,} images in "
            f"{self.num_pictures:,} pictures, an image up to {self.factors.max():.3g} times"
        )


def objects_per_image(annotations: Annotations) -> np.ndarray:
    """Return how many objects of each class each image has, crowd regions left out, [N C] int64."""
    keep = ~annotations.crowd
    counts = np.zeros((len(annotations), len(annotations.names)), dtype=np.int64)
    np.add.at(counts, (annotations.box_image[keep], annotations.labels[keep]), 1)
    return counts


def image_weights(objects: np.ndarray, class_ap: Sequence[float]) -> np.ndarray:
    """Return the probability of each image to be drawn, [N] float64.

    The rule is that of ``--image-weights`` in ultralytics/yolov5 v7.0: an object of class c weighs (1 - AP_c)^2 over
    the number of objects of its class, an image as much as its objects. A class whose AP is not defined has the mean
    of the others; before the first evaluation all have 0.

    Args:
        objects: of each class in each image, [N C].
        class_ap: [C], below 0 where it is not defined; may be empty.
    """
    ap = np.asarray(class_ap if len(class_ap) else np.zeros(objects.shape[1]), dtype=np.float64)
    defined = ap >= 0
    ap = np.where(defined, ap, ap[defined].mean() if defined.any() else 0.0)
    of_class = (1 - ap) ** 2 / np.maximum(objects.sum(axis=0), 1)
    weights = objects @ of_class
    if weights.sum() == 0:  # every class is found perfectly
        weights = objects.any(axis=1).astype(np.float64)
    return weights / weights.sum()


def repeat_factors(objects: np.ndarray, threshold: float) -> np.ndarray:
    """Return how often an epoch shows each image on average, at least once, [N] float64.

    Repeat factor sampling of LVIS (arXiv 1908.03195): of a class that the share f of the images has, r is
    max(1, sqrt(t / f)); of an image the largest of its classes. An image without objects is shown once.

    Args:
        objects: of each class in each image, [N C].
        threshold: t, a share of the images.
    """
    has = objects > 0
    share = has.mean(axis=0)
    of_class = np.ones(objects.shape[1])
    np.maximum(1, np.sqrt(threshold / np.maximum(share, 1e-12)), out=of_class, where=share > 0)
    return np.where(has, of_class, 1.0).max(axis=1)


def rounded_at_random(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return whole numbers [N] whose means are ``factors`` and whose sum is the same in every epoch.

    A schedule counts on epochs of one length. So the fractions are laid end to end, in random order, on a line as long
    as their rounded sum, and whoever lies on one of the marks at a random offset and whole distances is rounded up.
    """
    whole = np.floor(factors).astype(np.int64)
    fractions = factors - whole
    more = round(float(factors.sum())) - int(whole.sum())
    if more > 0:
        order = rng.permutation(len(factors))
        ends = np.cumsum(fractions[order])
        marks = np.arange(more) + rng.random()
        np.add.at(whole, order[np.searchsorted(ends, marks * (ends[-1] / more), side="right")], 1)
    return whole


def times_before(images: np.ndarray) -> np.ndarray:
    """Return of each entry [S] how many equal ones stand before it, [S] int64."""
    order = np.argsort(images, kind="stable")
    ordered = images[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))
    before = np.empty(len(images), dtype=np.int64)
    before[order] = np.arange(len(ordered)) - first
    return before
