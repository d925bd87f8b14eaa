"""Evaluations: what is measured, what is kept, what is refused, and that metrics are right."""

import json
from collections.abc import Callable
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import write_json
from sfumato.base.images import TEXT_PREFIX, png_bytes, to_pil
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.records import Records, load_records
from sfumato.evaluation import reference
from sfumato.evaluation.baselines import can_balance, real_pairs
from sfumato.evaluation.card import Card, Classes, read_card
from sfumato.evaluation.compare import Side, compare, compare_sides
from sfumato.evaluation.confusion import confusion_panels
from sfumato.evaluation.evaluate import evaluate
from sfumato.evaluation.extractors.registry import Opened
from sfumato.evaluation.extractors.small import load_small_clip
from sfumato.evaluation.image_files import read_folder, read_npz
from sfumato.evaluation.image_set import ImageSet, in_turn
from sfumato.evaluation.metrics.adherence import class_accuracy
from sfumato.evaluation.metrics.features import MOST_ROWS, ImageFeatures
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.kernel import kernel_distance
from sfumato.evaluation.metrics.moments import feature_statistics
from sfumato.evaluation.sampled_images import sampled_set
from sfumato.generation.model import Model
from tests.conftest import CommandResult
from tests.memory import run_alone

DIGITS = DataConfig(
    source="digits", resolution=8, channels=1, caption="A handwritten digit {label}"
)
SETTINGS = {"count": 40, "guidance_scales": (1, 3), "extractors": ("small-clip", "classifier")}
SAMPLED = {**SETTINGS, "first_seed": 7}
Sfumato = Callable[..., CommandResult]


def npz_of(path: Path, records: Records, count: int) -> Path:
    images = records.images[:count].permute(0, 2, 3, 1).numpy()
    np.savez(path, images, records.labels[:count].numpy())
    return path


@pytest.fixture(scope="module")
def real_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 real digits that are neither the reference nor what the classifier was trained on."""
    folder = tmp_path_factory.mktemp("npz")
    return npz_of(folder / "real.npz", load_records(DIGITS, "train"), 200)


@pytest.fixture(scope="module")
def real_card(real_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Card:
    out = tmp_path_factory.mktemp("real") / "evaluation"
    return evaluate(real_npz, data=DIGITS, out=out, **SETTINGS)


@pytest.fixture(scope="module")
def model_card(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Card:
    return evaluate(small_model, out=tmp_path_factory.mktemp("model") / "evaluation", **SAMPLED)


# What it says -------------------------------------------------------------------------------------


def test_real_images_score_like_the_baseline(real_card: Card) -> None:
    row = real_card.rows[0]
    assert real_card.blind == {}
    assert abs(row.class_accuracy.value - real_card.real.class_accuracy.value) < 0.03
    for key in ("small-clip", "classifier"):
        baseline = real_card.baselines[key]
        assert baseline.count == 200
        frechet = baseline.metrics["frechet"]
        assert abs(row.metrics[f"frechet.{key}"].value - frechet.mean) < 4 * frechet.std
        low, high = row.metrics[f"kernel.{key}"].interval
        assert low < 0 < high
        assert row.metrics[f"precision.{key}"].value > 0.85
        real = real_card.real.metrics[f"diversity.{key}"].value
        assert row.metrics[f"diversity.{key}"].value == pytest.approx(real, rel=0.1)
    assert row.memorised_share.value == 1  # they are training images
    assert row.classes is not None
    assert sum(map(sum, row.classes.confusion)) == 200
    real = real_card.real.classes
    assert real is not None
    assert sum(map(sum, real.confusion)) == real_card.reference.count
    right = sum(real.confusion[label][label] for label in range(len(real.names)))
    assert right == real_card.real.class_accuracy.successes
    assert real_card.folder is not None
    with Image.open(real_card.folder / "classes.png") as chart:
        assert chart.width > chart.height


def test_no_chart_of_more_classes_than_can_be_read() -> None:
    names = [str(n) for n in range(50)]
    alone = class_accuracy(torch.eye(50, dtype=torch.int64))
    found = Classes(names=names, accuracy=[*alone.classes], confusion=alone.confusion.tolist())
    assert confusion_panels([("all", found)]) is None


def test_metrics_are_those_of_all_features(real_card: Card) -> None:
    extractor = load_small_clip()
    generated = extractor(load_records(DIGITS, "train").images[:200])
    real = ImageSet.real(DIGITS, "reference").features(extractor).all_rows
    metrics = real_card.rows[0].metrics
    expected = frechet_distance(feature_statistics(generated), feature_statistics(real))
    assert metrics["frechet.small-clip"].value == pytest.approx(expected, rel=1e-6)
    kernel = kernel_distance(generated, real).value
    assert metrics["kernel.small-clip"].value == pytest.approx(kernel, rel=1e-9)


def test_a_folder_and_an_array_of_the_same_images_have_the_same_metrics(
    real_card: Card, tmp_path: Path
) -> None:
    records = load_records(DIGITS, "train")
    for index in range(200):
        folder = tmp_path / "images" / str(int(records.labels[index]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(records.images[index, 0].numpy()).save(folder / f"{index:04d}.png")
    array = ImageSet.from_array(records.images[:200], labels=records.labels[:200])
    for number, images in enumerate((tmp_path / "images", array)):
        card = evaluate(images, data=DIGITS, out=tmp_path / str(number), **SETTINGS)
        assert card.subject.kind == "images"
        assert card.rows[0].class_accuracy == real_card.rows[0].class_accuracy
        for key in ("frechet.small-clip", "frechet.classifier"):
            same = real_card.rows[0].metrics[key].value
            assert card.rows[0].metrics[key].value == pytest.approx(same, rel=1e-6)


def test_a_models_card_says_what_it_depends_on(model_card: Card) -> None:
    assert [row.title for row in model_card.rows] == ["w = 1", "w = 3"]
    settings = model_card.rows[1].settings
    assert settings["seeds"] == [7, 46]
    assert settings["guidance_convention"].startswith("uncond + w")
    assert settings["model"]["weights_sha256"]
    assert (settings["sampler"], settings["steps"]) == ("DDIM", 6)
    assert (model_card.rows[0].nfe, model_card.rows[1].nfe) == (6, 12)
    assert model_card.subject.captions == ["A handwritten digit {label}"]
    assert "test split (300 of 1,797), 8x8" in model_card.reference.description
    assert model_card.classifier is not None
    assert "sha256" in model_card.classifier.identity
    assert [info.name for info in model_card.extractors if "sha256" in info.name]
    assert any("Real images of the same number score" in text for text in model_card.warnings)
    assert model_card.folder is not None
    assert read_card(model_card.folder) == model_card


def test_a_row_has_its_metrics_by_name(model_card: Card, refused) -> None:
    row = model_card.rows[1]
    accuracy = row.class_accuracy
    low, high = accuracy.interval
    value = f"{100 * accuracy.value:.1f} % ({100 * low:.1f} - {100 * high:.1f})"
    assert str(accuracy) == value
    with refused(AttributeError):
        row.frechet  # noqa: B018
    with refused(AttributeError):
        row.fid  # noqa: B018
    text = str(model_card)
    for words in (value, "Frechet (classifier): 64 features", "real", "blur 1.5 px", "NFE"):
        assert words in text


def test_captions_in_our_pngs_are_the_labels(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    """Sampled to files, then measured from them: the same accuracy as measured at once."""
    prompts = [f"A handwritten digit {label}" for label in range(10)]
    out = tmp_path / "images"
    sampled = sfumato("sample", str(small_run), *prompts, "--count", "4", "--out", str(out))
    assert sampled.code == 0, sampled.err
    found = sfumato(
        "evaluate",
        str(out),
        "--data",
        "digits",
        "--set",
        "evaluation.extractors=[small-clip]",
        "--set",
        "data.caption=A handwritten digit {label}",
    )
    assert found.code == 0, found.err
    card = read_card(tmp_path / "images-evaluation")
    assert card.rows[0].class_accuracy.value > 0.8
    assert "clip_score.small-clip" in card.rows[0].metrics


def test_a_data_set_without_classes_is_measured_without_a_classifier(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for index, image in enumerate(noise):
        path = tmp_path / "photos" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        path.with_suffix(".txt").write_text(f"noise number {index}")
    np.savez(tmp_path / "images.npz", noise[:20])
    data = DataConfig(source=str(tmp_path / "photos"), test_share=0.5)
    card = evaluate(
        tmp_path / "images.npz", data=data, out=tmp_path / "out", extractors=["small-clip"]
    )
    assert card.classifier is None
    assert "class_accuracy" not in card.rows[0].metrics
    assert card.baselines["small-clip"].disjoint == "none"


def test_an_untrained_classifier_shows_what_it_is_worth(real_npz: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "classifier": "untrained", "extractors": ("classifier",)}
    card = evaluate(real_npz, data=DIGITS, out=tmp_path / "evaluation", **settings)
    assert card.classifier is not None
    assert card.classifier.identity.startswith("untrained:0")
    for row in (card.real, card.rows[0]):
        assert row.class_accuracy.value < 0.4
        found = row.untrained_accuracy
        assert found.low <= found.value <= found.high < 0.4
        assert found.details["chance"] == 0.1
    assert any("which guessing may do as well (14 %)" in text for text in card.warnings)


def test_a_new_metric_is_one_module(
    real_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears in the card, the tables, and the comparison."""
    from sfumato.evaluation.metrics import registry

    contrast = registry.Metric(
        name="contrast",
        title="contrast",
        needs="pixels",
        per_image=lambda images: images.double().flatten(1).std(dim=1),
        better="higher",
        real=True,
    )
    found = {**registry.all_metrics(), "contrast": contrast}
    for name in ("reference", "evaluate", "tables", "compare", "comparison_page"):
        module = import_module(f"sfumato.evaluation.{name}")
        monkeypatch.setattr(module, "all_metrics", lambda: found)
    monkeypatch.setattr(registry, "all_metrics", lambda: found)
    settings = {**SETTINGS, "extractors": ("classifier",)}
    images = read_npz(real_npz, DIGITS)
    dark = ImageSet.from_array(images.images() // 2, labels=images.labels, title="dark")
    cards = [
        evaluate(one, data=DIGITS, out=tmp_path / one.title, **settings) for one in (images, dark)
    ]
    assert cards[0].rows[0].contrast.value == pytest.approx(
        2 * cards[1].rows[0].contrast.value, 0.1
    )
    assert "contrast" in str(cards[0])
    comparison = compare(*cards)
    assert comparison.difference("contrast").better == "first"
    assert "contrast" in str(comparison)


# What is kept -------------------------------------------------------------------------------------


def test_stopped_anywhere_it_goes_on_and_ends_the_same(
    small_model: Model, model_card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[int] = []
    real = Model.sample

    def counted(self, prompts, *args, **options):
        sampled.append(len(prompts))
        return real(self, prompts, *args, **options)

    monkeypatch.setattr(Model, "sample", counted)
    init = ImageSet.__init__
    monkeypatch.setattr(
        ImageSet,
        "__init__",
        lambda self, **fields: init(
            self, **{**fields, "part_images": fields.get("part_images", 16)}
        ),
    )

    def stop_after(images: int):
        def on_images(what: str, done: int, total: int) -> None:
            if what == "images" and done >= images:
                raise KeyboardInterrupt

        return on_images

    out = tmp_path / "evaluation"
    for images in (16, 56):
        with pytest.raises(KeyboardInterrupt):
            evaluate(small_model, out=out, on_images=stop_after(images), **SAMPLED)
    card = evaluate(small_model, out=out, **SAMPLED)
    assert sum(sampled) == 80  # none twice
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]
    for row, unbroken in zip(card.rows, model_card.rows, strict=True):
        same = {"seconds": 0, "images": ""}
        assert row.model_copy(update=same) == unbroken.model_copy(update=same)
    again = evaluate(small_model, out=out, **SAMPLED)
    assert again.from_cache
    assert again.rows == card.rows
    assert sum(sampled) == 80  # the card was there


def test_another_evaluation_takes_another_folder(small_model: Model, model_card: Card) -> None:
    logged: list[str] = []
    settings = {**SAMPLED, "extractors": ("classifier",)}
    more = evaluate(small_model, out=model_card.folder, log=logged.append, **settings)
    assert more.folder is not None
    assert more.folder.name == "evaluation-2"
    assert f"these have {more.folder}" in logged[-1]  # before anything is sampled
    assert model_card.folder is not None
    assert read_card(model_card.folder) == model_card


def test_real_features_are_computed_once_for_all_that_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    extractor = load_small_clip()
    computed: list[str] = []

    def on_images(what: str, done: int, total: int) -> None:
        computed.append(what)

    def features(count: int = 300) -> ImageFeatures:
        images = ImageSet.real(DIGITS, "reference").first(count)
        return images.features(extractor, on_images=on_images)

    first, again = features(), features(100)
    assert len(computed) == 1
    assert torch.equal(first.all_rows[:100], again.all_rows)
    kept = features()
    assert torch.equal(first.statistics.covariance, kept.statistics.covariance)
    assert torch.equal(first.covariance_root, kept.covariance_root)
    for change in ({"split_seed": 1}, {"resolution": 10}, {"fit": "squash"}):
        ImageSet.real(DIGITS.model_copy(update=change), "test").features(
            extractor, on_images=on_images
        )
    assert len(computed) == 4
    damaged = next(tmp_path.rglob("statistics-300.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert torch.equal(first.statistics.covariance, features().statistics.covariance)


def test_a_part_is_sampled_again_for_other_prompts_or_seeds(
    small_model: Model, tmp_path: Path
) -> None:
    """Sets of the same settings share a folder, never images of other prompts."""

    def sampled(prompts: list[str], seeds: list[int]) -> ImageSet:
        return sampled_set(small_model, prompts, seeds, folder=tmp_path)

    one = sampled(["A handwritten digit 1"] * 2, [0, 1])
    other = sampled(["A handwritten digit 2"] * 2, [0, 1])
    assert one.folder == other.folder
    assert one.key != other.key
    assert not torch.equal(one.images(), other.images())
    assert sampled(["A handwritten digit 1"] * 2, [0, 1]).missing() == []
    assert len(sampled(["A handwritten digit 1"] * 2, [1, 2]).missing()) == 1


def test_pairs_of_images_are_of_a_bounded_number_of_rows() -> None:
    rows = torch.randn(MOST_ROWS + 700, 3, generator=torch.Generator().manual_seed(0))
    features = ImageFeatures(all_rows=rows)
    assert len(features.rows) == MOST_ROWS
    assert features.statistics.count == len(rows)
    np.testing.assert_allclose(features.statistics.covariance, np.cov(rows.T.double()), rtol=1e-12)


@pytest.mark.slow
def test_50000_by_2048_features_stream_within_a_gigabyte() -> None:
    """In a process of its own: peak memory and the time of the distance."""
    lines, peak_bytes = run_alone("""
import time, torch
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.moments import FeatureMoments
moments = [FeatureMoments(2048), FeatureMoments(2048)]
for seed, one in enumerate(moments):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(100):
        one.update(torch.randn(500, 2048, generator=generator))
a, b = (one.statistics() for one in moments)
started = time.perf_counter()
distance = frechet_distance(a, b)
print(distance, time.perf_counter() - started)
""")
    distance, seconds = map(float, lines[0].split())
    print(f"distance {distance:.2f} in {seconds:.1f} s, {peak_bytes / 1e9:.2f} GB at the peak")
    assert seconds < 20
    assert peak_bytes < 1e9


# Baselines, strata --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "reference", "reference_count", "disjoint"),
    [(1000, 1000, 100, "both"), (1000, 300, 300, "sets"), (900, 300, 300, "none")],
)
def test_pairs_are_disjoint_where_the_data_allow(
    training: int, reference: int, reference_count: int, disjoint: str
) -> None:
    found = real_pairs(
        count=100,
        reference_count=reference_count,
        pairs=10,
        training=training,
        reference=reference,
    )
    assert found is not None
    assert found.disjoint == disjoint
    rows = torch.cat(found.sets)
    assert len(rows) == 1000
    assert int(rows.max()) < training
    assert (len(rows.unique()) == 1000) == (disjoint != "none")
    others = torch.cat(found.references)
    assert (len(others.unique()) == len(others)) == (disjoint == "both")
    assert (
        real_pairs(
            count=training + 1, reference_count=10, pairs=10, training=training, reference=10
        )
        is None
    )


def test_real_sets_hold_as_many_of_each_class_as_generated_ones() -> None:
    """Otherwise uneven classes of few real images lie farther from the reference than a model."""
    labels = torch.arange(1000) * 7 % 10
    found = real_pairs(
        count=44, reference_count=300, pairs=10, training=1000, reference=300, labels=labels
    )
    assert found is not None
    assert found.balanced
    assert found.disjoint == "sets"
    assert len(torch.cat(found.sets).unique()) == 440
    asked = torch.bincount(torch.arange(44) % 10)
    assert all(torch.equal(torch.bincount(labels[rows]), asked) for rows in found.sets)
    rare = torch.where(torch.arange(1000) < 3, 0, 1)
    uneven = real_pairs(
        count=44, reference_count=300, pairs=10, training=1000, reference=300, labels=rare
    )
    assert uneven is not None
    assert not uneven.balanced


def test_captions_of_other_words_name_their_class(tmp_path: Path) -> None:
    """Of the data set's captions or not: one class's words in a caption are enough."""
    records = load_records(DIGITS, "train")

    def write_png(index: int, prompt: str) -> None:
        picture = png_bytes(to_pil(records.images[index]), {f"{TEXT_PREFIX}prompt": prompt})
        (tmp_path / f"{index}.png").write_bytes(picture)

    for index in range(12):
        write_png(index, "A lovely seven!")
    images = read_folder(tmp_path, DIGITS)
    assert images.labels is not None
    assert images.labels.tolist() == [7] * 12
    assert not images.notes
    write_png(0, "seven or three")
    images = read_folder(tmp_path, DIGITS)
    assert images.labels is None
    assert "the classes asked for are not known" in images.notes[0]


@pytest.mark.parametrize(
    "settings",
    [{"guidance_scales": (1, 1)}, {"reference_count": 5}, {"count": 9}, {"extractors": ()}],
    ids=str,
)
def test_settings_that_make_no_sense(settings: dict, refused) -> None:
    with refused(ValueError):
        EvaluationConfig(**settings)
    assert EvaluationConfig.model_validate({"extractors": "classifier,clip"}).extractors == (
        "classifier",
        "clip",
    )


def test_a_class_without_images_takes_no_turn() -> None:
    labels = torch.tensor([0, 0, 2, 2, 2])
    found = in_turn(labels, 4)
    assert found is not None
    assert [(rows.tolist(), share) for rows, share in found] == [([0, 1], 2), ([2, 3, 4], 2)]
    assert in_turn(labels, 6) is None


def test_both_baselines_are_balanced_or_neither() -> None:
    """50 images of a class are enough among 4,000 training images, and not among 200 test images;
    of fewer test images than are asked for there is no baseline to agree with."""

    def images(large: int, small: int) -> Any:
        labels = torch.tensor([0] * large + [1] * small)
        return SimpleNamespace(count=len(labels), labels=labels)

    def reference(*test: int) -> Any:
        return SimpleNamespace(training=images(3_900, 100), tuning=None, split=images(*test))

    assert not can_balance(reference(190, 10), 100)
    assert can_balance(reference(150, 50), 100)
    assert can_balance(reference(50, 10), 100)


def test_classes_in_turn_do_not_bias_the_kernel_distance(refused) -> None:
    """Mean over 200 draws of ten well separated classes: 0 with strata, below without."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(10, 4, generator=generator)

    def rows(labels: Tensor) -> Tensor:
        return centres[labels] + 0.3 * torch.randn(len(labels), 4, generator=generator)

    plain, weighted = [], []
    for _ in range(200):
        turns = torch.arange(40) % 10
        drawn = rows(turns)
        reference = rows(torch.randint(10, (200,), generator=generator))
        plain.append(kernel_distance(drawn, reference).value)
        weighted.append(kernel_distance(drawn, reference, strata=turns).value)
    error = torch.tensor(weighted).std() / 200**0.5
    assert abs(torch.tensor(weighted).mean()) < 3 * error
    assert torch.tensor(plain).mean() < -5 * error
    with refused(ValueError):
        kernel_distance(drawn, reference, strata=torch.arange(40))


# Comparing ----------------------------------------------------------------------------------------


def test_a_comparison_finds_what_differs(model_card: Card, refused) -> None:
    first = Side.of(model_card, "w = 1", name="a")
    second = Side.of(model_card, "w = 3", name="b")
    found = compare_sides(first, second)
    accuracy = found.difference("class_accuracy")
    right, also = (side.values["class_accuracy"] for side in (first, second))
    assert accuracy.only_second == int((also & ~right).sum())
    for one in found.differences:
        assert one.low <= one.difference <= one.high
        if one.key.startswith(("frechet", "diversity", "clip_score")):
            for side, value in ((first, one.first), (second, one.second)):
                assert value == pytest.approx(side.row.metrics[one.key].value, rel=1e-9)
    narrower = found.difference("diversity.small-clip")
    assert narrower.low > 0  # guidance makes images of a class alike
    assert not narrower.better  # which is neither better nor worse by itself
    assert narrower.title in str(found)
    with refused(ConfigError):
        compare_sides(first, first)


def test_models_are_compared_at_their_own_guidance(small_model: Model, tmp_path: Path) -> None:
    import dataclasses

    model = dataclasses.replace(small_model, folder=None)
    settings = {"count": 20, "extractors": ("classifier",)}
    with chdir(tmp_path):
        found = compare(model.with_(guidance=1), model.with_(guidance=3), out="page", **settings)
    assert found.names == ("w = 1", "w = 3")
    assert found.count == 20
    assert (tmp_path / "page" / "comparison.html").is_file()


def test_unlike_things_do_not_stand_in_one_column(
    model_card: Card, tmp_path: Path, refused
) -> None:
    import shutil

    assert model_card.folder is not None
    other = tmp_path / "other"
    shutil.copytree(model_card.folder, other)
    card = json.loads((other / "card.json").read_text())
    card["reference"]["digest"] = "0" * 16
    card["extractors"][0]["name"] = "small clip of another hash"
    card["rows"][0]["settings"]["seeds"] = [0, 39]
    write_json(other / "card.json", card)
    sides = [
        Side.of(read_card(folder), "w = 1", name=name)
        for folder, name in ((model_card.folder, "ours"), (other, "theirs"))
    ]
    with refused(ConfigError):
        compare_sides(*sides)


def test_the_command_evaluates_both_and_writes_one_page(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    options = ("--count", "20", "--set", "evaluation.extractors=[classifier]")
    found = sfumato(
        "compare", f"{small_run}@1", f"{small_run}@2", *options, "--out", "page", cwd=tmp_path
    )
    assert found.code == 0, found.err
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "20 pairs of images" in page
    assert "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "page" / "pairs.png").stat().st_size > 1000
    again = sfumato(
        "compare", f"{small_run}@1", f"{small_run}@2", *options, "--out", "page", cwd=tmp_path
    )
    assert (tmp_path / "page-2").is_dir()
    assert again.out.count("of 20 images") == 0  # nothing is sampled again


# Bad input ----------------------------------------------------------------------------------------


def write(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def test_folders_that_cannot_be_measured(tmp_path: Path, refused) -> None:
    grey = np.zeros((8, 8), np.uint8)
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused(InputError):
        read_folder(empty, DIGITS)
    (empty / "notes.txt").write_text("x")
    with refused(InputError):
        read_folder(empty, DIGITS)
    mixed = tmp_path / "mixed"
    write(mixed / "a.png", grey)
    write(mixed / "b.png", np.zeros((9, 8), np.uint8))
    with refused(InputError):
        read_folder(mixed, None)
    write(mixed / "b.png", grey, "RGB")
    with refused(InputError):
        read_folder(mixed, None)
    write(mixed / "b.png", grey, "RGBA")
    with refused(InputError):
        read_folder(mixed, None)
    write(mixed / "b.png", grey)
    with refused(InputError):
        read_folder(mixed, DIGITS)
    (mixed / "b.png").write_bytes((mixed / "a.png").read_bytes()[:40])
    with refused(DamagedDataError):
        read_folder(mixed, DIGITS)
    with refused(InputError):
        evaluate(tmp_path / "nothing", data=DIGITS)


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ([np.zeros((20, 8, 8), np.float32)], InputError),
        ([np.zeros((20, 8, 8, 4), np.uint8)], InputError),
        ([np.zeros((3, 8, 8), np.uint8)], InputError),
        ([np.zeros((20, 8, 8), np.uint8), np.full(20, 10)], InputError),
        ([np.array([{}], dtype=object)], DamagedDataError),
        ([np.zeros((20, 8, 9), np.uint8)], InputError),
    ],
    ids=["float32", "4 channels", "3 images", "labels of 10", "objects", "not square"],
)
def test_arrays_that_cannot_be_measured(tmp_path: Path, arrays, error, refused) -> None:
    np.savez(tmp_path / "images.npz", *arrays)
    with refused(error):
        read_npz(tmp_path / "images.npz", DIGITS)


def test_a_file_cut_short_and_images_without_a_reference(
    sfumato: Sfumato, real_npz: Path, tmp_path: Path, refused
) -> None:
    short = tmp_path / "short.npz"
    short.write_bytes(real_npz.read_bytes()[:2000])
    with refused(DamagedDataError):
        read_npz(short, DIGITS)
    alone = sfumato("evaluate", str(real_npz))
    assert alone.code == 2
    assert "does not say which real images" in alone.err
    assert "--data" in alone.err


def test_cards_of_other_versions_and_damaged_ones(
    model_card: Card, tmp_path: Path, refused
) -> None:
    assert model_card.folder is not None
    card = json.loads((model_card.folder / "card.json").read_text())
    write_json(tmp_path / "card.json", {**card, "schema_version": 1})
    with refused(DamagedDataError):
        read_card(tmp_path)
    card["rows"][0]["count"] = "much"
    write_json(tmp_path / "card.json", card)
    with refused(DamagedDataError):
        read_card(tmp_path)


def test_nan_features_are_an_error_never_a_metric(
    small_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    import dataclasses

    broken = dataclasses.replace(
        load_small_clip(),
        name="broken",
        of_batch=lambda images: torch.full((len(images), 128), torch.nan),
    )
    monkeypatch.setattr(
        reference,
        "available_extractors",
        lambda *args, **kwargs: iter([Opened(key="small-clip", title="Frechet", extractor=broken)]),
    )
    with refused(DamagedDataError):
        evaluate(small_model, out=tmp_path / "evaluation", **SAMPLED)
