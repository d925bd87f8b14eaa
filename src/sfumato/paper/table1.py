"""Table 1 of the paper by its own protocol and by one with baselines, of the same images.

The paper (section 3.3.6): 1,000 images, 100 a class, against 1,000 real test images, FID by
pytorch-fid, accuracy by an ImageNet ResNet-18 whose first and last layers were never trained. The
other: a trained classifier, all reference images, intervals, and what real images score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.base.section import Section
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.evaluation.card import Card
from sfumato.evaluation.classifier import ImageClassifier, load_classifier
from sfumato.evaluation.evaluate import evaluate
from sfumato.evaluation.extractors.extractor import FeatureExtractor, WeightsNotAtHandError
from sfumato.evaluation.extractors.registry import load_extractor
from sfumato.evaluation.extractors.vision import ResNetBody, load_resnet_body
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.frechet import frechet_score
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.reference import balanced_images
from sfumato.evaluation.task import prompts_of, sampled_sets, with_overrides
from sfumato.evaluation.untrained import accuracies_by_seed, over_seeds, untrained_accuracies
from sfumato.generation.model import Model
from sfumato.report.page import markdown_table

FILE_NAME = "table1.json"
_INCEPTION = "inception-pytorch-fid"


class Paper(Section):
    """One set of images by the paper's protocol."""

    fid: Estimate | None
    """pytorch-fid's, against as many real test images; None where its weights are not at hand."""
    frechet: Estimate
    """The same on the classifier's features, which are at hand everywhere."""
    first_head: Estimate | None
    """Accuracy of the paper's classifier, seed 0; None where ResNet-18 is not at hand."""
    heads: Estimate | None
    """The same of 20 such classifiers, which differ in their random layers alone."""
    random_networks: Estimate
    """Accuracy of 20 small networks with random weights all through."""


class Table1Row(Section):
    """One guidance scale, or real images."""

    title: str
    paper: Paper
    frechet: Estimate | None
    """On the classifier's features, against all reference images."""
    class_accuracy: Estimate | None
    """Of the trained classifier; None for real images, whose row is of the paper's protocol."""


class Table1(Section):
    """Both protocols side by side, and all that they depend on."""

    rows: list[Table1Row]
    count: int
    reference_count: int
    baseline: Estimate | None
    """Frechet distance of real training sets of `count` images against all reference images."""
    classifier_accuracy: Estimate
    """Of the trained classifier on the reference images."""
    chance: float
    missing: dict[str, str]
    """What is not at hand, and why."""
    reference: str
    classifier: str
    card: str
    """The evaluation that the images belong to."""
    sampled: str = ""
    """By which form of guidance, sampler and steps."""
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    command: str = ""
    folder: Path | None = Field(default=None, exclude=True)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What the paper's protocol needs, opened before anything is sampled: images of each class on
    the other side, and networks. `missing`: what is not at hand, and why."""

    data: DataConfig
    test: ImageSet
    others: ImageSet
    """Other real images, as many."""
    inception: FeatureExtractor | None
    body: ResNetBody | None
    missing: dict[str, str]

    @classmethod
    def open(cls, data: DataConfig, config: EvaluationConfig) -> "Tools":
        """Raises for weights that are there and cannot be used, and where the real images are too
        few or have no classes."""
        real = ImageSet.real(data, "reference")
        others = ImageSet.real(data, "tuning" if data.tuning_share else "train")
        if real.labels is None:
            raise InputError("Table 1 needs images of known classes.")
        test, others = (_of_each_class(one, config.count) for one in (real, others))
        missing: dict[str, str] = {}
        inception = body = None
        features = config.features
        try:
            inception = load_extractor(_INCEPTION, features)
        except WeightsNotAtHandError as error:
            missing["fid"] = f"{error.what} {error.hint}"
        try:
            body = load_resnet_body(features.resnet, may_download=features.may_download)
        except WeightsNotAtHandError as error:
            missing["resnet"] = f"{error.what} {error.hint}"
        return cls(
            data=data, test=test, others=others, inception=inception, body=body, missing=missing
        )

    def measure(self, images: Tensor, labels: Tensor, classifier: ImageClassifier) -> Paper:
        """Images by the paper's protocol."""
        classes = len(classifier.class_names)
        body, heads = self.body, None
        if body is not None:
            heads = accuracies_by_seed(
                lambda seed: body.logits(images, classes=classes, seed=seed), labels
            )
        networks = untrained_accuracies(self.data, images, labels)
        return Paper(
            fid=None if self.inception is None else self._distance(images, self.inception),
            frechet=self._distance(images, classifier),
            first_head=None if heads is None else heads[0],
            heads=None if heads is None else over_seeds(heads, classes=classes),
            random_networks=over_seeds(networks, classes=classes),
        )

    def _distance(self, images: Tensor, extractor: FeatureExtractor) -> Estimate:
        against = self.test.features(extractor)
        return frechet_score(ImageFeatures(all_rows=extractor(images)), against).estimate


def measure_table1(
    model: Model,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> Table1:
    """Both protocols of the images of an evaluation, written beside its card as table1.json."""
    own, data, config = with_overrides(model, overrides)
    tools = Tools.open(data, config)
    card = evaluate(model, overrides=overrides, out=out, log=log, on_images=on_images)
    assert card.folder is not None
    classifier = load_classifier(data, config.classifier, log=log)
    rows = []
    sets = sampled_sets(own, prompts_of(data, config), config)
    for images, row in zip(sets, card.rows, strict=True):
        assert images.labels is not None  # the data have classes
        log(f"Measuring {row.title} by the paper's protocol ...")
        pixels = images.kept_in(card.folder / "images").images()
        rows.append(
            Table1Row(
                title=row.title,
                paper=tools.measure(pixels, images.labels, classifier),
                frechet=row.metrics.get("frechet.classifier"),
                class_accuracy=row.class_accuracy,
            )
        )
    log("Measuring real images by the paper's protocol ...")
    assert tools.others.labels is not None
    title = "other real test images" if data.tuning_share else "real training images"
    paper = tools.measure(tools.others.images(), tools.others.labels, classifier)
    rows.append(Table1Row(title=title, paper=paper, frechet=None, class_accuracy=None))
    table = _table(card, rows, classifier, tools)
    write_json(card.folder / FILE_NAME, table.model_dump(mode="json"))
    return table


def _table(card: Card, rows: list[Table1Row], classifier: ImageClassifier, tools: Tools) -> Table1:
    baseline = card.baselines.get("classifier")
    spread = None if baseline is None else baseline.metrics.get("frechet")
    assert card.folder is not None
    return Table1(
        rows=rows,
        count=card.rows[0].count,
        reference_count=card.reference.count,
        baseline=None
        if spread is None
        else Estimate(
            value=spread.mean, low=spread.mean - spread.std, high=spread.mean + spread.std
        ),
        classifier_accuracy=classifier.test_accuracy,
        chance=rows[0].paper.random_networks.details["chance"],
        missing=tools.missing,
        reference=card.reference.description,
        classifier=classifier.identity,
        card=card.folder.name,
        sampled="{guidance}, {sampler} in {steps} steps".format_map(card.rows[0].settings),
        command=command(),
        folder=card.folder,
    )


def _of_each_class(real: ImageSet, count: int) -> ImageSet:
    """`count` images, as many of each class."""
    rows = balanced_images(real, count)
    if rows is None:
        raise InputError(
            f"Table 1 takes {count:,} real images, as many of each class; there are "
            f"{len(real):,} in {real.settings['images']}.",
            hint="Give --count a smaller number.",
        )
    return real.select(rows)


# As text ------------------------------------------------------------------------------------------


def columns(table: Table1) -> list[str]:
    """What the columns are called; the first ones are the paper's protocol."""
    size = f"{table.count:,}"
    return [
        "",
        f"FID, {size} against {size}",
        "untrained head, seed 0",
        "20 such heads",
        "20 untrained networks",
        f"Frechet (classifier), {size} against {size}",
        f"Frechet (classifier), {size} against {table.reference_count:,}",
        "class accuracy (trained classifier)",
    ]


def cells(row: Table1Row) -> list[str]:
    """One row; empty where something is not at hand, or does not apply."""
    paper = row.paper
    return [
        row.title,
        _distance(paper.fid),
        _share(paper.first_head),
        _share(paper.heads),
        _share(paper.random_networks),
        _distance(paper.frechet),
        _distance(row.frechet),
        _share(row.class_accuracy),
    ]


def rows_of(table: Table1) -> list[list[str]]:
    """All rows: the guidance scales, real images by the paper's protocol, and what real images
    score by the other one."""
    empty = [""] * (len(columns(table)) - 3)
    real = ["real images", *empty, _distance(table.baseline), _share(table.classifier_accuracy)]
    return [*map(cells, table.rows), real]


def markdown(table: Table1) -> str:
    """The table, what changed between the protocols, and what is not at hand."""
    return "\n".join([markdown_table(columns(table), rows_of(table)), "", *sentences(table), ""])


def sentences(table: Table1) -> list[str]:
    """What the two protocols show, in sentences."""
    generated = [row for row in table.rows if row.paper.random_networks and row.frechet is not None]
    real = table.rows[-1]
    kind = "heads" if real.paper.heads is not None else "networks"

    def of(row: Table1Row) -> Estimate:
        return row.paper.heads or row.paper.random_networks

    bounds = [of(row).interval for row in generated]
    spread = [100 * (upper - lower) for lower, upper in bounds]
    means = [100 * of(row).value for row in generated]
    low, high = of(real).interval
    return [
        f"Untrained {kind}: on {real.title}, whose classes are right by definition, they are "
        f"right in {100 * of(real).value:.1f} % on average, from {100 * low:.1f} to "
        f"{100 * high:.1f} %; chance is {100 * table.chance:.0f} %. One guidance scale "
        f"spans up to {max(spread):.1f} points over the random seeds, the means of the scales lie "
        f"within {max(means) - min(means):.1f} points of each other.",
        f"{real.title.capitalize()} against as many test images score "
        f"{_distance(real.paper.frechet)} on the classifier's features"
        + (f" and an FID of {_distance(real.paper.fid)}" if real.paper.fid is not None else "")
        + ": a smaller distance has no meaning. The row `real images` has real training sets of "
        "as many images against all of the reference, and the classifier's accuracy on it.",
        f"Images of {table.card}, sampled by {table.sampled}; reference: {table.reference}; "
        f"classifier {table.classifier}; sfumato {table.sfumato}, {table.date}.",
        *table.missing.values(),
    ]


def _distance(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.value:.3g} ± {(found.high - found.low) / 2:.2g}"


def _share(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} - {100 * found.high:.1f})"
