"""Evaluations: what is measured, what is kept, what is refused, and that figures are right."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import write_json
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.records import Records, load_records
from sfumato.evaluation import measure, taken
from sfumato.evaluation.card import MetricCard, read_card
from sfumato.evaluation.compare import Side, compare
from sfumato.evaluation.extractors.small import load_small_clip
from sfumato.evaluation.figures import MOST_ROWS, Features, floor_sets
from sfumato.evaluation.measure import evaluate
from sfumato.evaluation.metrics.frechet import feature_statistics, frechet_distance
from sfumato.evaluation.metrics.kernel import kernel_distance
from sfumato.evaluation.real import RealImages
from sfumato.evaluation.target import Target, files_target, model_target
from sfumato.generation.model import ImageGenerator, Picture
from tests.conftest import CommandResult
from tests.memory import run_alone

DIGITS = DataConfig(
    source="digits", resolution=8, channels=1, caption="A handwritten digit {label}"
)
CONFIG = EvaluationConfig(count=40, guidance_scales=(1, 3), extractors=("small-clip", "judge"))
Sfumato = Callable[..., CommandResult]


def npz_of(path: Path, records: Records, count: int) -> Path:
    images = records.images[:count].permute(0, 2, 3, 1).numpy()
    np.savez(path, images, records.labels[:count].numpy())
    return path


@pytest.fixture(scope="module")
def real_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 real digits that are neither the reference nor what the judge was trained on."""
    folder = tmp_path_factory.mktemp("npz")
    return npz_of(folder / "real.npz", load_records(DIGITS, "train"), 200)


@pytest.fixture(scope="module")
def real_card(real_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> MetricCard:
    base = tmp_path_factory.mktemp("real") / "evaluation"
    return evaluate(files_target(real_npz, DIGITS), CONFIG, base=base).card


@pytest.fixture(scope="module")
def target(small_generator: ImageGenerator, small_run: Path) -> Target:
    return model_target(small_generator, small_run, CONFIG, first_seed=7)


@pytest.fixture(scope="module")
def evaluated(target: Target, tmp_path_factory: pytest.TempPathFactory) -> measure.Evaluated:
    return evaluate(target, CONFIG, base=tmp_path_factory.mktemp("model") / "evaluation")


# What it says -------------------------------------------------------------------------------------


def test_real_images_score_like_the_floor(real_card: MetricCard) -> None:
    row = real_card.rows[0]
    assert row.agreement is not None
    assert real_card.real.agreement is not None
    assert abs(row.agreement.value - real_card.real.agreement.value) < 0.03
    for key, figures in row.features.items():
        floor = real_card.floors[key]
        assert floor.count == 200
        assert floor.frechet is not None
        assert abs(figures.frechet.value - floor.frechet.mean) < 4 * floor.frechet.std
        assert figures.kernel is not None
        assert figures.kernel.low is not None
        assert figures.kernel.low < 0 < (figures.kernel.high or 0)
        assert figures.precision is not None
        assert figures.precision.value > 0.85
        assert figures.diversity is not None
        assert floor.diversity is not None
        assert figures.diversity.value == pytest.approx(floor.diversity.value, rel=0.1)
    assert row.memorised is not None
    assert row.memorised.share.value == 1  # they are training images
    assert row.classes is not None
    assert sum(map(sum, row.classes.confusion)) == 200


def test_figures_are_those_of_the_metrics_on_all_features(real_card: MetricCard) -> None:
    extractor = load_small_clip()
    generated = extractor(load_records(DIGITS, "train").images[:200])
    reference = RealImages.load(DIGITS, "reference")
    real = reference.features(extractor, on_images=lambda what, done, total: None)
    figures = real_card.rows[0].features["small-clip"]
    expected = frechet_distance(feature_statistics(generated), feature_statistics(real))
    assert figures.frechet.value == pytest.approx(expected, rel=1e-6)
    assert figures.kernel is not None
    assert figures.kernel.value == pytest.approx(kernel_distance(generated, real).value, rel=1e-9)


def test_a_folder_of_the_same_images_has_the_same_figures(
    real_card: MetricCard, tmp_path: Path
) -> None:
    records = load_records(DIGITS, "train")
    for index in range(200):
        folder = tmp_path / "images" / str(int(records.labels[index]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(records.images[index, 0].numpy()).save(folder / f"{index:04d}.png")
    target = files_target(tmp_path / "images", DIGITS)
    card = evaluate(target, CONFIG, base=tmp_path / "evaluation").card
    assert card.subject.kind == "folder"
    assert card.rows[0].agreement == real_card.rows[0].agreement  # classes by the folders' names
    for key, figures in card.rows[0].features.items():
        same = real_card.rows[0].features[key].frechet.value
        assert figures.frechet.value == pytest.approx(same, rel=1e-6)


def test_a_models_card_says_what_it_depends_on(evaluated: measure.Evaluated) -> None:
    card = evaluated.card
    assert [row.title for row in card.rows] == ["w = 1", "w = 3"]
    settings = card.rows[1].settings
    assert settings["seeds"] == [7, 46]
    assert settings["guidance_convention"].startswith("uncond + w")
    assert settings["model"]["weights_sha256"]
    assert (settings["scheduler"], settings["steps"]) == ("DDIM", 6)
    assert (card.rows[0].calls, card.rows[1].calls) == (6, 12)
    assert card.subject.captions == ["A handwritten digit {label}"]
    assert "test split (300 of 1,797), 8x8" in card.reference.description
    assert card.judge is not None
    assert "sha256" in card.judge.identity
    assert [info.name for info in card.extractors if "sha256" in info.name]
    assert any("Real images of the same number score" in text for text in card.warnings)
    assert read_card(evaluated.folder) == card


def test_captions_in_our_pngs_are_the_labels(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    """Drawn to files, then measured from them: the same agreement as measured at once."""
    prompts = [f"A handwritten digit {label}" for label in range(10)]
    out = tmp_path / "images"
    drawn = sfumato("sample", str(small_run), *prompts, "--count", "4", "--out", str(out))
    assert drawn.code == 0, drawn.err
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
    assert card.rows[0].agreement is not None
    assert card.rows[0].agreement.value > 0.8
    assert "small-clip" in card.rows[0].clip_score


def test_a_data_set_without_classes_is_measured_without_a_judge(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for index, image in enumerate(noise):
        path = tmp_path / "photos" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        path.with_suffix(".txt").write_text(f"noise number {index}")
    np.savez(tmp_path / "drawn.npz", noise[:20])
    data = DataConfig(source=str(tmp_path / "photos"), test_share=0.5)
    target = files_target(tmp_path / "drawn.npz", data)
    config = CONFIG.model_copy(update={"extractors": ("small-clip",)})
    card = evaluate(target, config, base=tmp_path / "evaluation").card
    assert card.judge is None
    assert card.rows[0].agreement is None
    assert card.floors["small-clip"].disjoint == "none"


def test_an_untrained_judge_shows_what_it_is_worth(real_npz: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"judge": "untrained", "extractors": ("judge",)})
    card = evaluate(files_target(real_npz, DIGITS), config, base=tmp_path / "evaluation").card
    assert card.judge is not None
    assert card.judge.identity.startswith("untrained:0")
    for row in (card.real, card.rows[0]):
        assert row.agreement is not None
        assert row.agreement.value < 0.4
        assert row.untrained is not None
        assert row.untrained.lowest <= row.untrained.mean <= row.untrained.highest < 0.4
        assert row.untrained.chance == 0.1
    assert any("which guessing may do as well (10 %)" in text for text in card.warnings)


# What is kept -------------------------------------------------------------------------------------


def test_stopped_anywhere_it_goes_on_and_ends_the_same(
    small_generator: ImageGenerator,
    small_run: Path,
    evaluated: measure.Evaluated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    real = small_generator.pipeline.sample

    def counted(prompts, **options):
        drawn.append(len(prompts))
        return real(prompts, **options)

    monkeypatch.setattr(small_generator.pipeline, "sample", counted)
    monkeypatch.setattr(taken, "PART_IMAGES", 16)
    target = model_target(small_generator, small_run, CONFIG, first_seed=7)

    def stop_after(images: int):
        def on_images(what: str, done: int, total: int) -> None:
            if what == "images" and done >= images:
                raise KeyboardInterrupt

        return on_images

    base = tmp_path / "evaluation"
    for images in (16, 56):
        with pytest.raises(KeyboardInterrupt):
            evaluate(target, CONFIG, base=base, on_images=stop_after(images))
    card = evaluate(target, CONFIG, base=base).card
    assert sum(drawn) == 80  # none twice
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]
    for row, unbroken in zip(card.rows, evaluated.card.rows, strict=True):
        assert row.model_copy(update={"seconds": 0}) == unbroken.model_copy(update={"seconds": 0})
    assert evaluate(target, CONFIG, base=base).card == card
    assert sum(drawn) == 80  # the card was there


def test_another_evaluation_takes_another_folder(evaluated: measure.Evaluated, target) -> None:
    said: list[str] = []
    more = evaluate(
        target,
        CONFIG.model_copy(update={"extractors": ("judge",)}),
        base=evaluated.folder,
        say=said.append,
    )
    assert more.folder.name == "evaluation-2"
    assert f"these have {more.folder}" in said[-1]  # before anything is drawn, not only at the end
    assert read_card(evaluated.folder) == evaluated.card


def test_real_features_are_taken_once_for_all_that_they_depend_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    extractor = load_small_clip()
    told: list[str] = []

    def on_images(what: str, done: int, total: int) -> None:
        told.append(what)

    first = RealImages.load(DIGITS, "reference").features(extractor, on_images=on_images)
    again = RealImages.load(DIGITS, "reference").features(extractor, 100, on_images=on_images)
    assert len(told) == 1
    assert torch.equal(first[:100], again)
    statistics, root = RealImages.load(DIGITS, "reference").statistics(extractor, first)
    kept, kept_root = RealImages.load(DIGITS, "reference").statistics(extractor, first)
    assert torch.equal(statistics.covariance, kept.covariance)
    assert torch.equal(root, kept_root)
    for change in ({"split_seed": 1}, {"resolution": 10}, {"fit": "squash"}):
        RealImages.load(DIGITS.model_copy(update=change), "test").features(
            extractor, on_images=on_images
        )
    assert len(told) == 4
    damaged = next(tmp_path.rglob("statistics-300.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    mended, _ = RealImages.load(DIGITS, "reference").statistics(extractor, first)
    assert torch.equal(statistics.covariance, mended.covariance)


def test_memory_does_not_grow_with_the_images() -> None:
    rows = torch.randn(MOST_ROWS + 700, 3, generator=torch.Generator().manual_seed(0))
    features = Features.gathered(iter(rows.split(64)), None)
    assert len(features.rows) == MOST_ROWS
    assert features.statistics.count == len(rows)
    np.testing.assert_allclose(features.statistics.covariance, np.cov(rows.T.double()), rtol=1e-12)


@pytest.mark.slow
def test_50000_by_2048_features_stream_within_a_gigabyte() -> None:
    """In a process of its own: peak memory and the time of the distance."""
    lines, peak_bytes = run_alone("""
import time, torch
from sfumato.evaluation.metrics.frechet import FeatureMoments, frechet_distance
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


# Floors, strata -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "reference", "reference_count", "disjoint"),
    [(1000, 1000, 100, "both"), (1000, 300, 300, "sets"), (900, 300, 300, "none")],
)
def test_pairs_are_disjoint_where_the_data_allow(
    training: int, reference: int, reference_count: int, disjoint: str
) -> None:
    found = floor_sets(
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
        floor_sets(
            count=training + 1, reference_count=10, pairs=10, training=training, reference=10
        )
        is None
    )


def test_real_sets_hold_as_many_of_each_class_as_generated_ones() -> None:
    """Otherwise uneven classes of few real images lie farther from the reference than a model."""
    labels = torch.arange(1000) * 7 % 10
    found = floor_sets(
        count=44, reference_count=300, pairs=10, training=1000, reference=300, labels=labels
    )
    assert found is not None
    assert found.balanced
    assert found.disjoint == "sets"
    assert len(torch.cat(found.sets).unique()) == 440
    asked = torch.bincount(torch.arange(44) % 10)
    assert all(torch.equal(torch.bincount(labels[rows]), asked) for rows in found.sets)
    rare = torch.where(torch.arange(1000) < 3, 0, 1)
    uneven = floor_sets(
        count=44, reference_count=300, pairs=10, training=1000, reference=300, labels=rare
    )
    assert uneven is not None
    assert not uneven.balanced


def test_captions_of_other_words_name_their_class(tmp_path: Path) -> None:
    """Of the data set's captions or not: one class's words in a caption are enough."""
    records = load_records(DIGITS, "train")
    for index in range(12):
        picture = Picture(image=records.images[index], settings={"prompt": "A lovely seven!"})
        (tmp_path / f"{index}.png").write_bytes(picture.png())
    subject = files_target(tmp_path, DIGITS).subjects[0]
    assert subject.labels is not None
    assert subject.labels.tolist() == [7] * 12
    assert not subject.notes
    picture = Picture(image=records.images[0], settings={"prompt": "seven or three"})
    (tmp_path / "0.png").write_bytes(picture.png())
    subject = files_target(tmp_path, DIGITS).subjects[0]
    assert subject.labels is None
    assert "what was asked for is not known" in subject.notes[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidance_scales": (1, 1)}, "given twice"),
        ({"reference_count": 5}, "too few"),
        ({"count": 9}, "too few"),
        ({"extractors": ()}, "at least one"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvaluationConfig(**settings)
    assert EvaluationConfig.model_validate({"extractors": "judge,clip"}).extractors == (
        "judge",
        "clip",
    )


def test_classes_in_turn_do_not_bias_the_kernel_distance() -> None:
    """Mean over 200 draws of ten well separated classes: 0 with strata, below without."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(10, 4, generator=generator)

    def rows(labels: Tensor) -> Tensor:
        return centres[labels] + 0.3 * torch.randn(len(labels), 4, generator=generator)

    plain, weighted = [], []
    for _ in range(200):
        in_turn = torch.arange(40) % 10
        drawn = rows(in_turn)
        reference = rows(torch.randint(10, (200,), generator=generator))
        plain.append(kernel_distance(drawn, reference).value)
        weighted.append(kernel_distance(drawn, reference, strata=in_turn).value)
    error = torch.tensor(weighted).std() / 200**0.5
    assert abs(torch.tensor(weighted).mean()) < 3 * error
    assert torch.tensor(plain).mean() < -5 * error
    with pytest.raises(ValueError, match="a class has 1 row"):
        kernel_distance(drawn, reference, strata=torch.arange(40))


# Comparing ----------------------------------------------------------------------------------------


def test_a_comparison_finds_what_differs(evaluated: measure.Evaluated) -> None:
    first = Side.open(evaluated.folder, "w = 1", name="a")
    second = Side.open(evaluated.folder, "w = 3", name="b")
    found = compare(first, second)
    assert found.agreement is not None
    right, also = first.right, second.right
    assert found.agreement.only_second == int((also & ~right).sum())
    by_name = {(one.name, one.extractor): one for one in found.differences}
    for (name, extractor), one in by_name.items():
        if extractor and name in ("frechet", "diversity"):
            for side, value in ((first, one.first), (second, one.second)):
                figure = getattr(side.row.features[extractor], name)
                assert value == pytest.approx(figure.value, rel=1e-9)
        assert one.low <= one.difference <= one.high
    narrower = by_name["diversity", "small-clip"]
    assert narrower.low > 0  # guidance makes images of a class alike
    assert not narrower.better  # which is neither better nor worse by itself
    with pytest.raises(ConfigError, match="Both are a, w = 1"):
        compare(first, first)


def test_unlike_things_do_not_stand_in_one_column(
    evaluated: measure.Evaluated, tmp_path: Path
) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(evaluated.folder, other)
    card = json.loads((other / "card.json").read_text())
    card["reference"]["digest"] = "0" * 16
    card["extractors"][0]["name"] = "small clip of another hash"
    card["rows"][0]["settings"]["seeds"] = [0, 39]
    write_json(other / "card.json", card)
    sides = [
        Side.open(folder, "w = 1", name=name)
        for folder, name in ((evaluated.folder, "ours"), (other, "theirs"))
    ]
    with pytest.raises(ConfigError, match="ours and theirs cannot be compared") as refused:
        compare(*sides)
    for words in ("other settings", "seeds: [7, 46] and [0, 39]", "extractor small-clip"):
        assert words in refused.value.what


def test_the_command_evaluates_both_and_writes_one_page(
    sfumato: Sfumato, small_run: Path, tmp_path: Path
) -> None:
    options = ("--count", "20", "--set", "evaluation.extractors=[judge]")
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
    assert again.out.count("of 20 images") == 0  # nothing is drawn again


# Bad input ----------------------------------------------------------------------------------------


def write(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def test_folders_that_cannot_be_measured(tmp_path: Path) -> None:
    grey = np.zeros((8, 8), np.uint8)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="is empty"):
        files_target(empty, DIGITS)
    (empty / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        files_target(empty, DIGITS)
    mixed = tmp_path / "mixed"
    write(mixed / "a.png", grey)
    write(mixed / "b.png", np.zeros((9, 8), np.uint8))
    with pytest.raises(InputError, match=r"a.png is 8 x 8 greyscale, b.png is 8 x 9 greyscale"):
        files_target(mixed, DIGITS)
    write(mixed / "b.png", grey, "RGB")
    with pytest.raises(InputError, match=r"b.png is 8 x 8 RGB"):
        files_target(mixed, DIGITS)
    write(mixed / "b.png", grey, "RGBA")
    with pytest.raises(InputError, match="mode RGBA"):
        files_target(mixed, DIGITS)
    write(mixed / "b.png", grey)
    with pytest.raises(InputError, match="2 images are too few"):
        files_target(mixed, DIGITS)
    (mixed / "b.png").write_bytes((mixed / "a.png").read_bytes()[:40])
    with pytest.raises(DamagedDataError, match=r"b.png cannot be read"):
        files_target(mixed, DIGITS)
    with pytest.raises(InputError, match="does not exist"):
        files_target(tmp_path / "nothing", DIGITS)


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ([np.zeros((20, 8, 8), np.float32)], InputError, "holds no images: arr_0 float32"),
        ([np.zeros((20, 8, 8, 4), np.uint8)], InputError, "holds no images"),
        ([np.zeros((3, 8, 8), np.uint8)], InputError, "3 images are too few"),
        ([np.zeros((20, 8, 8), np.uint8), np.full(20, 10)], InputError, "labels from 10 to 10"),
        ([np.array([{}], dtype=object)], DamagedDataError, "no whole archive of plain arrays"),
        ([np.zeros((20, 8, 9), np.uint8)], InputError, "not square"),
    ],
)
def test_arrays_that_cannot_be_measured(tmp_path: Path, arrays, error, words: str) -> None:
    np.savez(tmp_path / "images.npz", *arrays)
    with pytest.raises(error, match=words):
        files_target(tmp_path / "images.npz", DIGITS)


def test_a_file_cut_short_and_images_without_a_reference(
    sfumato: Sfumato, real_npz: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.npz"
    short.write_bytes(real_npz.read_bytes()[:2000])
    with pytest.raises(DamagedDataError, match="cannot be read"):
        files_target(short, DIGITS)
    alone = sfumato("evaluate", str(real_npz))
    assert alone.code == 2
    assert "does not say which real images" in alone.err
    assert "--data" in alone.err


def test_cards_of_other_versions_and_damaged_ones(
    evaluated: measure.Evaluated, tmp_path: Path
) -> None:
    card = json.loads((evaluated.folder / "card.json").read_text())
    write_json(tmp_path / "card.json", {**card, "schema_version": 1})
    with pytest.raises(DamagedDataError, match="not a metric card of version 2, but 1"):
        read_card(tmp_path)
    card["rows"][0]["saturated"] = "much"
    write_json(tmp_path / "card.json", card)
    with pytest.raises(DamagedDataError, match="saturated"):
        read_card(tmp_path)


def test_nan_features_are_an_error_never_a_figure(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    broken = dataclasses.replace(
        load_small_clip(),
        name="broken",
        of_batch=lambda images: torch.full((len(images), 128), torch.nan),
    )
    monkeypatch.setattr(
        measure,
        "available_extractors",
        lambda *args, **kwargs: iter(
            [measure.Opened(key="small-clip", title="Frechet", extractor=broken)]
        ),
    )
    with pytest.raises(DamagedDataError, match="broken: features hold NaN"):
        evaluate(target, CONFIG, base=tmp_path / "evaluation")


def test_the_published_schema_is_that_of_the_card() -> None:
    published = Path(__file__).parents[1] / "docs" / "metric-card.schema.json"
    assert json.loads(published.read_text()) == MetricCard.model_json_schema()
