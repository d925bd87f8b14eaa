"""Captions from several columns: what is left out, what becomes readable, what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import ConfigError, InputError
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.annotations import classes_of_captions
from sfumato.data.captions import (
    captions_from_templates,
    column_fields,
    fields,
    rendered,
    required_fields,
)
from sfumato.data.identity import identities
from sfumato.data.opening import open_images
from sfumato.data.prepare import prepare
from sfumato.data.readable import readable_columns
from sfumato.data.records import load_records, trained_on
from sfumato.data.streaming.stream import open_stream
from sfumato.evaluation.image_set import ImageSet
from sfumato.evaluation.task import prompts_of
from sfumato.text.sentences import sentences_around
from tests.pictures import encoded, noise, write_image, write_parquet

PAINTING = "A(n) [{genre}|painting] [by {artist} ]in the style of {style_name}"
STYLES = ["Art_Nouveau", "Impressionism", "Ukiyo_e"]
GENRES = ["abstract_painting", "landscape", "Unknown Genre"]
PAPER = """Abstract Expressionism, Action Painting, Analytical Cubism, Art Nouveau Modern,
Baroque, Color Field Painting, Contemporary Realism, Cubism, Early Renaissance,
Expressionism, Fauvism, High Renaissance, Impressionism, Mannerism Late
Renaissance, Minimalism, Naive Art Primitivism, New Realism, Northern
Renaissance, Pointillism, Pop Art, Post Impressionism, Realism, Rococo,
Romanticism, Symbolism, Synthetic Cubism, Ukiyo-e"""
"""The styles of section 3.4.2 in its order."""
WORKS = (
    # style, genre, artist, what the caption must be
    (1, 1, "claude-monet", "A landscape by Claude Monet in the style of Impressionism"),
    (1, 2, "claude-monet", "A painting by Claude Monet in the style of Impressionism"),
    (1, 1, "Unknown Artist", "A landscape in the style of Impressionism"),
    (2, 2, None, "A painting in the style of Ukiyo e"),
    (0, 0, "", "An abstract painting in the style of Art Nouveau"),
    (2, None, "hiroshige", "A painting by Hiroshige in the style of Ukiyo e"),
    (0, 1, "vincent-van-gogh", "A landscape by Vincent van Gogh in the style of Art Nouveau"),
)


@pytest.fixture
def paintings(tmp_path: Path) -> Path:
    """Works in the columns of WikiArt, three times over and with a test part."""
    folder = tmp_path / "paintings"
    for part, times in (("train", 3), ("test", 1)):
        works = WORKS * times
        write_parquet(
            folder / f"data/{part}-00000-of-00001.parquet",
            [encoded(noise(seed, (8, 8, 3))) for seed in range(len(works))],
            [work[0] for work in works],
            label="style",
            names=STYLES,
            classes={"genre": GENRES},
            genre=[work[1] for work in works],
            artist=[work[2] for work in works],
            row_group_size=4,
        )
    return folder


def data_of(folder: Path, *captions: str, **changes) -> DataConfig:
    values = {"label_column": "style", "resolution": 8, "channels": 3, **changes}
    return DataConfig(source=str(folder), caption=captions or (PAINTING,), **values)


def captions_of(records) -> list[str]:
    return [records.captions[row] for row in records.prompts[:, 0].tolist()]


def test_what_is_unknown_is_left_out(paintings: Path) -> None:
    records = load_records(data_of(paintings), "train")
    assert captions_of(records) == [work[3] for work in WORKS] * 3
    assert records.class_captions == [
        "A painting in the style of Art Nouveau",
        "A painting in the style of Impressionism",
        "A painting in the style of Ukiyo e",
    ]


def test_streamed_and_prepared_images_have_the_same_captions(
    paintings: Path, tmp_path: Path
) -> None:
    wanted = [work[3] for work in WORKS]
    stream = open_stream(data_of(paintings), "test")
    assert captions_of(stream) == wanted
    out = tmp_path / "prepared"
    prepare(data_of(paintings, caption_column="none"), out)
    prepared = data_of(out, label_column="auto")
    assert captions_of(load_records(prepared, "test")) == wanted
    # No caption was the images' own, so the preparation has none either.
    assert open_images(prepared).captions == ""
    with pytest.raises(ConfigError, match="unknown field"):
        open_images(data_of(out, "{gnre}", label_column="auto"))


def test_an_image_takes_each_template_in_turn(paintings: Path) -> None:
    records = load_records(data_of(paintings, "{style_name}", "[{artist}|someone]"), "test")
    assert [records.captions[row] for row in records.prompts[1]] == [
        "Impressionism",
        "Claude Monet",
    ]
    assert [records.captions[row] for row in records.prompts[3]] == ["Ukiyo e", "someone"]


def test_columns_that_captions_use_make_other_training_images(paintings: Path) -> None:
    """`images.json` tells a changed artist from none; a column that no caption uses is nothing."""
    plain = identities(open_images(data_of(paintings, "{style_name}")), "test")
    known = identities(open_images(data_of(paintings)), "test")
    assert np.array_equal(plain[:, 0], known[:, 0])
    assert (plain[:, 1] != known[:, 1]).all()


def test_a_table_beside_images_has_columns_too(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    rows = [
        {"file_name": "0.png", "text": "a bridge", "year": 1899, "town": "Giverny"},
        {"file_name": "1.png", "text": "a door", "year": None, "town": "unknown"},
        {"file_name": "2.png", "text": "a boat", "year": 1900.0},
    ]
    for number, row in enumerate(rows):
        write_image(folder / row["file_name"], noise(number, (8, 8, 3)))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = data_of(folder, "{caption}[ in {town}][, {year}]", label_column="auto", test_share=0.0)
    assert captions_of(load_records(config, "train")) == [
        "a bridge in Giverny, 1899",
        "a door",
        "a boat, 1900",
    ]


def test_misspelt_columns_and_missing_values_are_refused(
    paintings: Path, tmp_path: Path, refused
) -> None:
    with refused(ConfigError):
        open_images(data_of(paintings, "A {gnre} painting"))
    with refused(ConfigError):
        open_images(DataConfig(source="digits", caption=("A {colour} digit",)))
    with refused(ConfigError):  # two of seven are unknown, one is null
        load_records(data_of(paintings, "A {genre}"), "test")
    with refused(ConfigError):
        captions_from_templates(["A {genre} in {style_name}"], STYLES)
    for template in ("A [painting", "A painting]", "[by [{artist}]]", "[{artist]", "{"):
        with refused(ConfigError):
            fields(template)


@pytest.mark.parametrize(
    ("template", "values", "caption"),
    [
        ("A photo of a {class_name}", {"class_name": "ice_cream"}, "A photo of a ice_cream"),
        ("  as  it is ,", {}, "  as  it is ,"),  # nothing optional: every letter is kept
        ("a(n) {x}", {"x": "owl"}, "an owl"),
        ("a(n) {x}", {"x": "Bird"}, "a Bird"),
        ("A(n) [{x}|{y}|thing]", {"x": "", "y": "echo"}, "An echo"),
        ("A(n) [{x}|{y}|thing]", {}, "A thing"),
        ("f(n) a(n)", {}, "f(n) a(n)"),
        ("one [{x}] two", {}, "one two"),
        ("by x[ of {y}], in z", {}, "by x, in z"),
        ("[{x} ], y", {}, ", y"),
        ("[[{x}]] [{y}|-]", {"x": "1"}, "[1] -"),
        ("[{x} and {y}|{y}]", {"y": "alone"}, "alone"),
    ],
)
def test_templates_by_hand(template: str, values: dict[str, str], caption: str) -> None:
    assert rendered(template, values) == caption


def test_fields_of_a_template() -> None:
    assert fields(PAINTING) == {"genre", "artist", "style_name"}
    assert required_fields(PAINTING) == {"style_name"}
    assert column_fields([PAINTING, "{caption} {label} {year}"]) == ("artist", "genre", "year")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("genre", ["still_life", "Unknown Genre", "portrait"], ["still life", "", "portrait"]),
        ("genre", ["self-portrait", "view", "battle"], ["self-portrait", "view", "battle"]),
        ("artist", ["a.y.-jackson", "raphael"], ["A.Y. Jackson", "Raphael"]),
        ("artist", ["el-greco", "titian-the-elder"], ["El Greco", "Titian the Elder"]),
        ("artist", ["jean-honoré-x", "John Constable"], ["Jean Honoré X", "John Constable"]),
        ("artist", ["Unknown Genre", "unknown_artist"], ["Unknown Genre", ""]),
        ("note", ["with_one and spaces", " ", "N/A", "nan"], ["with_one and spaces", "", "", ""]),
    ],
)
def test_values_become_words(name: str, values: Sequence[str], words: Sequence[str]) -> None:
    assert readable_columns({name: values}) == {name: list(words)}


def test_the_27_styles_by_name_and_order(shared_data: Path) -> None:
    """Of the stand-in set, which has the Hub's features; the paper names three in other words."""
    paper = PAPER.replace("\n", " ").split(", ")
    folder = shared_data / "paintings"
    if not folder.is_dir():
        pytest.skip(f"needs the paintings: no folder {folder}")
    names = open_images(data_of(folder)).class_names
    found = [name.replace("_", " ") for name in names]
    differ = {mine: theirs for mine, theirs in zip(found, paper, strict=True) if mine != theirs}
    assert differ == {
        "Action painting": "Action Painting",
        "Art Nouveau": "Art Nouveau Modern",
        "Ukiyo e": "Ukiyo-e",
    }
    records = load_records(data_of(folder), "test")
    captions = captions_of(records)
    assert not any("Unknown" in caption or "_" in caption for caption in captions)
    assert all(
        caption.endswith(f" in the style of {found[label]}")
        for caption, label in zip(captions, records.labels.tolist(), strict=True)
    )


def test_sentences_keep_the_name_of_a_field_whole() -> None:
    """A column may have spaces in its name: no filler is put inside of the braces."""
    found = sentences_around(("a picture of {full name}",), 60)
    assert all(fields(one) == {"full name"} for one in found)


# Captions that are not trained on -----------------------------------------------------------------

OUT = "A landscape by Claude Monet in the style of Impressionism"


@pytest.mark.parametrize("how", ["memory", "stream", "prepared"])
def test_images_of_captions_that_are_left_out_are_not_trained_on(
    paintings: Path, tmp_path: Path, how: str
) -> None:
    folder = paintings
    if how == "prepared":
        prepare(data_of(paintings, caption_column="none"), folder := tmp_path / "prepared")
    label = "auto" if how == "prepared" else "style"
    whole = data_of(folder, PAINTING, "{style_name}", label_column=label)
    data = whole.model_copy(update={"left_out": (OUT, "A painting in the style of Ukiyo e")})
    read = open_stream if how == "stream" else load_records
    records, every = read(data, "train"), read(whole, "train")
    assert captions_of(records) == [work[3] for i, work in enumerate(WORKS) if i not in (0, 3)] * 3
    assert captions_of(every) == [work[3] for work in WORKS] * 3
    assert len(trained_on(data)) == 15
    assert captions_of(load_records(data, "test")) == [work[3] for work in WORKS]
    if how == "memory":
        keep = [place for place in range(len(every)) if place % 7 not in (0, 3)]
        assert torch.equal(records.images[:], every.images[keep])
        assert ImageSet.real(data, "train").key != ImageSet.real(whole, "train").key


def test_what_cannot_be_left_out(paintings: Path, refused) -> None:
    with refused(ConfigError, str(paintings)):
        load_records(data_of(paintings, left_out=(OUT.replace("Claude", "Claud"),)), "train")
    everything = tuple(dict.fromkeys(work[3] for work in WORKS))
    with refused(InputError):
        load_records(data_of(paintings, left_out=everything), "train")


def test_a_caption_stands_for_the_class_of_its_images(
    paintings: Path, tmp_path: Path, refused
) -> None:
    ukiyo, abstract = "A painting in the style of Ukiyo e", WORKS[4][3]
    asked = [OUT, ukiyo, abstract]
    data = data_of(paintings, left_out=(OUT,))
    classes = classes_of_captions(data, asked)
    assert classes is not None
    assert classes.tolist() == [1, 2, 0]
    both = tmp_path / "both"
    (both / "data").mkdir(parents=True)
    for part, texts in (("train", ["a", "b", "a"]), ("test", ["c", "c"])):
        write_parquet(
            both / f"data/{part}-00000-of-00001.parquet",
            [encoded(noise(seed, (8, 8, 3))) for seed in range(len(texts))],
            [{"a": 0, "b": 1, "c": 2}[text] for text in texts],
            label="style",
            names=STYLES,
            caption=texts,
        )
    found = classes_of_captions(data_of(both, "{caption}"), ["c", "b", "a"])
    assert found is not None
    assert found.tolist() == [2, 1, 0]
    by_columns = PAINTING.replace("style_name", "style")
    for column, expected in (("style", [1, 2, 0]), ("genre", [1, 2, 0])):
        found = classes_of_captions(data_of(paintings, by_columns, label_column=column), asked)
        assert found is not None
        assert found.tolist() == expected
    with refused(InputError, str(paintings)):
        classes_of_captions(data, ["A landscape by Monet"])
    by_artist = data_of(paintings, "a work[ by {artist}]")
    with refused(InputError):
        classes_of_captions(by_artist, ["a work"])


def test_an_evaluation_asks_for_given_captions(paintings: Path) -> None:
    data = data_of(paintings, left_out=(OUT,))
    second = "A painting in the style of Ukiyo e"
    prompts = prompts_of(data, EvaluationConfig(captions=(OUT, second), count=11))
    assert list(prompts.prompts) == [OUT, second] * 5 + [OUT]
    assert prompts.labels is not None
    assert prompts.labels.tolist() == [1, 2] * 5 + [1]
    with pytest.raises(ValueError, match="give one of them"):
        EvaluationConfig(captions=(OUT,), held_out=True)
