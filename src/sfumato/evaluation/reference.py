"""The real images that sets of images are measured against, and how a set is scored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sfumato.base.errors import InputError, SfumatoError
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.records import Records, load_records
from sfumato.evaluation.card import ExtractorInfo
from sfumato.evaluation.classifier import ImageClassifier, load_classifier
from sfumato.evaluation.extractors.extractor import Device, FeatureExtractor
from sfumato.evaluation.extractors.registry import available_extractors
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.metrics.registry import Metric, Score, all_metrics

MOST_TRAINING = 50_000
NEAREST_BY = ("dinov2", "clip", "small-clip", "classifier", "inception")
"""Whose features tell the nearest training image: the first of them that is at hand."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every metric of one set of images, with `values` image by image for paired tests, and a note
    for each that could not be computed."""

    metrics: dict[str, Estimate]
    values: dict[str, Tensor]
    notes: list[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real images of a data set, the extractors of features, and the classifier.

    `images`: the first `reference_count` of the reference `split`; `tuning`: the other part of the
    test images, where there is one. `infos`: of each extractor that was asked for.
    """

    data: DataConfig
    records: Records
    split: ImageSet
    images: ImageSet
    training: ImageSet
    tuning: ImageSet | None
    classifier: ImageClassifier | None
    extractors: Mapping[str, FeatureExtractor]
    infos: Sequence[ExtractorInfo]
    on_images: OnImages
    _features: dict[str, ImageFeatures] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        data: DataConfig,
        config: EvaluationConfig,
        *,
        device: Device = "cpu",
        log: Callable[[str], None] = lambda text: None,
        on_images: OnImages = lambda what, done, total: None,
    ) -> "Reference":
        """Raises what opening the data, the classifier and the extractors raises."""
        records = load_records(data, "reference")
        split = ImageSet.real(data, "reference")
        images = split.first(config.reference_count or split.count)
        if images.count < 2:
            raise InputError(
                f"{images.count} real test image is too few to measure against.",
                hint="Hold out more with --set data.test_share=0.5 when training, or give more "
                "images.",
            )
        classifier = None
        if len(records.class_names) > 1:
            classifier = load_classifier(data, config.classifier, device=device, log=log)
        extractors, infos = _opened(config, device, classifier)
        return cls(
            data=data,
            records=records,
            split=split,
            images=images,
            training=ImageSet.real(data, "train").first(MOST_TRAINING),
            tuning=ImageSet.real(data, "tuning") if data.tuning_share else None,
            classifier=classifier,
            extractors=extractors,
            infos=infos,
            on_images=on_images,
        )

    def features_of(self, images: ImageSet, key: str) -> ImageFeatures:
        """The features of a set of images on an extractor."""
        return images.features(
            self.extractors[key],
            on_images=lambda what, done, total: self.on_images(f"{what} ({key})", done, total),
        )

    def features(self, key: str) -> ImageFeatures:
        """Those of the reference images, which know the training images'."""
        if key not in self._features:
            self._features[key] = replace(
                self.features_of(self.images, key),
                find_training=lambda: self.features_of(self.training, key),
            )
        return self._features[key]

    def score(self, images: ImageSet, names: Sequence[str] | None = None) -> Scores:
        """The metrics called `names`, or all that an evaluation computes, of a set of images."""
        found: dict[str, Score] = {}
        notes: list[str] = []
        for metric in all_metrics().values():
            if metric.default if names is None else metric.name in names:
                for key, compute in self._computations(metric, images):
                    try:
                        score = compute()
                    except ValueError as error:
                        notes.append(f"{metric.title}: {error}")
                    except SfumatoError as error:
                        if metric.needs != "text":
                            raise
                        notes.append(f"{metric.title} ({key.partition('.')[2]}): {error.what}")
                    else:
                        if score is not None:
                            found[key] = score
        return Scores(
            metrics={key: score.estimate for key, score in found.items()},
            values={key: score.values for key, score in found.items() if score.values is not None},
            notes=list(dict.fromkeys(notes)),
        )

    def _computations(
        self, metric: Metric, images: ImageSet
    ) -> Iterator[tuple[str, Callable[[], Score | None]]]:
        """What there is to compute for a metric: each key in a card, and how."""
        if metric.per_image is not None:
            measure = metric.per_image
            yield metric.name, lambda: metric.score(images.per_image(measure))
            return
        compute = metric.compute
        assert compute is not None
        for key in self.extractors_of(metric):
            own = self.features_of(images, key)
            if metric.needs == "text" and own.embed_text is None:
                continue
            if metric.needs == "logits" and own.head is None:
                continue
            name = metric.name if metric.needs == "classifier" else f"{metric.name}.{key}"
            yield name, lambda own=own, key=key: compute(own, self.features(key))

    def extractors_of(self, metric: Metric) -> list[str]:
        """The keys of the extractors that a metric is computed on."""
        if metric.needs == "classifier":
            return [] if self.classifier is None else ["classifier"]
        if metric.needs == "training":
            return [key for key in NEAREST_BY if key in self.extractors][:1]
        return list(self.extractors)

    def pairs_of_each_class(self, most: int) -> ImageSet:
        """The first reference images, at most `most`, of classes that have two of them there."""
        images = self.images.first(most)
        if images.labels is None:
            return images
        rows = (images.labels.bincount()[images.labels] > 1).nonzero().squeeze(1)
        return images.select(rows)


def _opened(
    config: EvaluationConfig, device: Device, classifier: ImageClassifier | None
) -> tuple[dict[str, FeatureExtractor], list[ExtractorInfo]]:
    """The extractors by key, the classifier among them, and what is known of those asked for."""
    extractors: dict[str, FeatureExtractor] = {}
    infos = []
    for one in available_extractors(
        config.extractors, config.features, device=device, classifier=classifier
    ):
        about: dict[str, object] = {"key": one.key, "title": one.title}
        about |= {"missing": one.reason, "hint": one.hint}
        if one.extractor is not None:
            extractors[one.key] = one.extractor
            about |= {"name": one.extractor.name, "dim": one.extractor.dim}
        infos.append(ExtractorInfo.model_validate(about))
    if classifier is not None:
        extractors.setdefault("classifier", classifier)
    return extractors, infos


def nearest_pairs(
    reference: Reference, images: ImageSet, shown: int = 12
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The images closest to a training image, the closest first, with that training image, and the
    same of real test images: uint8 (K, C, H, W) each. None for too few images."""
    from sfumato.evaluation.metrics.memorisation import MEMORISED_SHARE, memorisation_of

    for key in reference.extractors_of(MEMORISED_SHARE):
        try:
            found = memorisation_of(reference.features_of(images, key), reference.features(key))
        except ValueError:
            return None
        closest = found.order[:shown]
        test = found.test_distances.argsort(stable=True)[:shown]
        return (
            images.images(closest.tolist()),
            reference.training.images(found.indices[closest].tolist()),
            reference.images.images(test.tolist()),
            reference.training.images(found.test_indices[test].tolist()),
        )
    return None


def balanced_images(images: ImageSet, count: int) -> Tensor | None:
    """The numbers of `count` images, as many of each class; None where there are not so many."""
    from sfumato.evaluation.image_set import in_turn

    if images.labels is None:
        return None
    shares = in_turn(images.labels, count)
    return None if shares is None else torch.cat([own[:share] for own, share in shares])
