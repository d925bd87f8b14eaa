"""Synthetic WikiArt: the form of the real one, styles that differ, the same bytes from a seed."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sfumato.base.errors import InputError
from sfumato.base.files import TEMPORARY_PREFIX
from sfumato.base.images import resize
from sfumato.bench import synthetic
from sfumato.bench.paintings.styles import STYLES, paint
from sfumato.bench.synthetic import GENRES, LEAST_BYTES, MOST_BYTES, Synthesis, synthesize
from sfumato.config.sections import DataConfig
from sfumato.data.opening import open_images
from sfumato.data.records import load_records

SMALL = Synthesis(files=2, rows=16, row_group=6, order="sorted", seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "wikiart"
    synthesize(folder, SMALL)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_files_have_the_hubs_form(folder: Path) -> None:
    files = sorted((folder / "data").iterdir())
    assert [path.name for path in files] == [SMALL.name(0), SMALL.name(1)]
    for path in files:
        opened = pq.ParquetFile(path)
        assert opened.schema_arrow.names == ["image", "artist", "genre", "style"]
        sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
        assert sizes == [6, 6, 4]
        table = opened.read()
        bytes_each = [len(row["bytes"]) for row in table["image"].to_pylist()]
        assert LEAST_BYTES <= min(bytes_each) <= max(bytes_each) <= MOST_BYTES
        for row in table["image"].to_pylist():
            image = Image.open(io.BytesIO(row["bytes"]))
            assert image.format == "JPEG"
            assert 960 <= min(image.size) <= max(image.size) < 1750
    shapes = [Image.open(io.BytesIO(row["bytes"])).size for row in table["image"].to_pylist()]
    assert {width > height for width, height in shapes} == {True, False}
    assert len(set(shapes)) > 12


def test_everything_says_that_it_is_synthetic(folder: Path) -> None:
    table = pq.read_table(folder / "data" / SMALL.name(0))
    assert SMALL.name(0).startswith("synthetic-")
    assert b'"synthetic": "wikiart"' in table.schema.metadata[b"sfumato"]
    assert b"Synthetic: made by a program" in table.schema.metadata[b"huggingface"]
    assert all(row["path"].startswith("synthetic-") for row in table["image"].to_pylist())
    assert all(name.startswith("synthetic_artist_") for name in synthetic.ARTISTS)
    assert "No painting in here was painted" in (folder / "README.md").read_text()


def test_our_reader_sees_styles_and_asks_which_label(folder: Path, refused) -> None:
    with refused(InputError):
        open_images(DataConfig(source=str(folder)))
    config = DataConfig(
        source=str(folder), label_column="style", resolution=32, channels=3, caption="{class_name}"
    )
    records = load_records(config, "train")
    assert list(records.class_names) == list(STYLES)
    assert len(records) + len(load_records(config, "test")) == 32


def test_datasets_sees_the_same(folder: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    found = load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert len(found) == 32
    assert found.features["style"].names == list(STYLES)
    assert found.features["genre"].names == list(GENRES)
    assert found["style"] == SMALL.styles().tolist()
    assert found[0]["image"].size[0] > 900


def test_styles_have_the_long_tail_of_wikiart() -> None:
    """Of 81,444 paintings; rounding never moves a class by more than a row."""
    counts = np.array([style.count for style in STYLES.values()])
    assert counts.sum() == 81_444
    assert (len(counts), counts.max(), counts.min()) == (27, 13_060, 98)
    for files in (1, 72):
        whole = Synthesis(files=files)
        found = np.bincount(whole.styles(), minlength=27)
        assert found.sum() == whole.files * whole.rows
        assert np.abs(found - counts * found.sum() / counts.sum()).max() <= 1
    sorted_styles = Synthesis(files=3, order="sorted").styles()
    assert (np.diff(sorted_styles) >= 0).all()
    mixed = Synthesis(files=3).styles()
    assert not np.array_equal(mixed, sorted_styles)
    assert np.array_equal(np.sort(mixed), sorted_styles)
    # Mixed: the first file alone has the whole set's mixture.
    assert abs(np.mean(mixed[:1100] == 12) - np.mean(mixed == 12)) < 0.04


def test_the_same_seed_gives_the_same_bytes_and_goes_on_after_a_kill(
    folder: Path, tmp_path: Path
) -> None:
    """What a kill leaves: the first file whole, the second a temporary one. Here one process makes
    what two or more have made."""
    expected = hashes(folder)
    begun = tmp_path / "begun" / "data"
    begun.mkdir(parents=True)
    first = begun / SMALL.name(0)
    first.write_bytes((folder / "data" / SMALL.name(0)).read_bytes())
    (begun / f"{TEMPORARY_PREFIX}abc").write_bytes(b"half a file")
    made = first.stat().st_mtime_ns
    told: list[tuple[int, int]] = []
    synthesize(begun.parent, SMALL, processes=1, on_rows=lambda *done: told.append(done))
    assert hashes(begun.parent) == expected
    assert first.stat().st_mtime_ns == made
    assert told == [(22, 32), (28, 32), (32, 32)]
    synthesize(begun.parent, SMALL)  # all is there: nothing is made
    assert first.stat().st_mtime_ns == made


def test_other_settings_and_strange_files_are_refused(
    folder: Path, tmp_path: Path, refused
) -> None:
    before = hashes(folder)
    for other in (Synthesis(files=2, rows=16, row_group=6, seed=3), Synthesis(files=3, rows=16)):
        with refused(InputError):
            synthesize(folder, other)
    assert hashes(folder) == before
    (tmp_path / "letter.txt").write_text("dear")
    with refused(InputError):
        synthesize(tmp_path, SMALL)
    with refused(InputError):
        Synthesis(rows=0)


def features(image: Image.Image) -> np.ndarray:
    """Colours of a 4 x 4 grid, spread of colours, strength of edges at two scales."""
    pixels = resize(np.asarray(image), 64).astype(np.float64) / 255
    cells = pixels.reshape(4, 16, 4, 16, 3)
    parts = [cells.mean((1, 3)).ravel(), cells.std((1, 3)).ravel(), pixels.std((0, 1))]
    for step in (1, 4):
        for axis in (0, 1):
            edges = np.abs(np.diff(pixels[::step, ::step].mean(2), axis=axis))
            parts.append(np.quantile(edges, (0.25, 0.5, 0.75, 0.9, 0.99)))
    return np.concatenate(parts)


@pytest.mark.slow
def test_styles_really_differ() -> None:
    """A linear classifier on small features tells fresh paintings apart: chance is 3.7 %."""

    def many(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rows, labels = [], []
        for label, style in enumerate(STYLES.values()):
            for number in range(count):
                rng = np.random.default_rng([seed, label, number])
                genre = style.genres[rng.integers(len(style.genres))]
                rows.append(features(paint(style, genre, (200, 160), rng)))
                labels.append(label)
        return np.stack(rows), np.array(labels)

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    classifier.fit(*many(8, seed=0))
    assert classifier.score(*many(4, seed=1)) > 0.7


def test_the_command_says_what_it_made_and_goes_on(sfumato, folder: Path) -> None:
    settings = ["--files", "2", "--rows", "16", "--row-group", "6", "--seed", "3"]
    made = sfumato("data", "synthesize", str(folder), *settings, "--order", "sorted")
    assert made.code == 0, made.err
    assert "2 files, 32 synthetic paintings, 0.0" in made.out
    assert f"sfumato data show {folder} --set data.label_column=style" in made.out
    for wrong, message in (
        (["--like", "wikart"], "is not one of 'wikiart'"),
        (["--order", "random"], "is not one of"),
        (["--order", "mixed"], "made with other settings"),
    ):
        refused = sfumato("data", "synthesize", str(folder), *settings, *wrong)
        assert refused.code == 2
        assert message in refused.err
