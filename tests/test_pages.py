"""Images found in Parquet's pages one by one: those that Arrow reads, whoever wrote the pages."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sfumato.config.sections import DataConfig
from sfumato.data.decode import Target, decode
from sfumato.data.sources.parquet import read_group
from sfumato.data.sources.parquet_pages import ImageIndex, index_images
from sfumato.data.streaming.decoder import ChunkDecoder, StreamedRecords
from sfumato.data.table import RowGroup
from tests.pictures import encoded, noise

HEAD = bytes(range(256)) * 3
"""What all of them begin with, as photographs of one camera do: Snappy copies it."""


def images(count: int, *, least: int = 17_000, most: int = 90_000) -> list[bytes | None]:
    """Contents that tell themselves apart; some rows have none, and some have the same."""
    rng = np.random.default_rng(count)
    found: list[bytes | None] = [HEAD + rng.bytes(rng.integers(least, most)) for _ in range(count)]
    found[3] = found[count // 2] = None
    found[5] = found[4]
    return found


def write(path: Path, contents: list[bytes | None], *, kind: Any = None, **options: Any) -> Path:
    """A file with a row of `kind` for each, between columns of other things."""
    kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows: list[Any] = contents
    if pa.types.is_struct(kind):
        rows = [None if data is None else {"bytes": data, "path": "a.jpg"} for data in contents]
        rows[7] = {"bytes": None, "path": "nowhere.jpg"}
    columns = {
        "artist": ["?"] * len(rows),
        "image": pa.array(rows, kind),
        "style": range(len(rows)),
    }
    pq.write_table(
        pa.table({name: pa.array(rows) for name, rows in columns.items()}), path, **options
    )
    return path


def indexed(file: Path, group: int = 0) -> ImageIndex:
    index_images.cache_clear()
    index = index_images(file, group, "image")
    assert index is not None
    return index


def by_arrow(file: Path, rows: list[int], group: int = 0) -> list[bytes | None]:
    return list(read_group(file, group, rows, "image"))


# What is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["snappy", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("in_page", [4, 1024])
@pytest.mark.parametrize("kind", [None, pa.binary(), pa.large_binary()])
def test_all_that_arrow_writes_is_read_to_the_byte(
    tmp_path: Path, compression: str, version: str, dictionary: bool, in_page: int, kind: Any
) -> None:
    file = write(
        tmp_path / "a.parquet",
        images(50),
        kind=kind,
        row_group_size=30,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        write_batch_size=in_page,
        data_page_size=1000,
        dictionary_pagesize_limit=300_000,
        write_page_checksum=True,
    )
    for group, count in ((0, 30), (1, 20)):
        everything = list(range(count))
        index = indexed(file, group)
        assert list(index.read(everything)) == by_arrow(file, everything, group)
        some = [0, 3, 4, 5, 7, 19]
        assert list(index.read(some)) == by_arrow(file, some, group)


@pytest.mark.parametrize("rows", [100, 1100])
@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_row_groups_of_a_hundred_and_of_a_whole_file(
    tmp_path: Path, rows: int, compression: str
) -> None:
    contents = images(1100, least=16_000, most=18_000)
    contents[7] = None
    file = write(tmp_path / "a.parquet", contents, row_group_size=rows, compression=compression)
    for group in range(1100 // rows):
        mine = contents[group * rows : (group + 1) * rows]
        assert list(indexed(file, group).read(range(rows))) == mine


def test_a_column_that_must_have_images(tmp_path: Path) -> None:
    contents = [HEAD + noise(row, (20_000,)).tobytes() for row in range(9)]
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    pq.write_table(pa.table([pa.array(contents)], schema=schema), tmp_path / "a.parquet")
    assert list(indexed(tmp_path / "a.parquet").read([0, 8])) == [contents[0], contents[8]]


def test_only_the_bytes_of_the_images_are_read(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path / "a.parquet", images(400), compression="snappy")
    index = indexed(file)
    pread, sizes = os.pread, []

    def noted(*where: int) -> bytes:
        content = pread(*where)
        sizes.append(len(content))
        return content

    monkeypatch.setattr("sfumato.data.sources.parquet_pages.os.pread", noted)
    (image,) = index.read([300])
    assert image is not None
    assert sum(sizes) < len(image) + 2 * 66_000  # and the rest of two blocks of 64 KiB


# What is left to Arrow ----------------------------------------------------------------------------


DELTA = {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}


@pytest.mark.parametrize(
    ("contents", "options"),
    [
        (images(20), {"compression": "zstd"}),
        (images(20), {"compression": "gzip"}),
        (images(20), {"use_dictionary": False, "column_encoding": DELTA}),
        (images(20, least=100, most=200), {}),
        ([bytes([row]) * 100_000 for row in range(20)], {}),
    ],
    ids=["zstd", "gzip", "encoding", "small", "compressible"],
)  # fmt: skip
def test_what_is_not_walked_has_no_index(tmp_path: Path, contents: Any, options: Any) -> None:
    file = write(tmp_path / "a.parquet", contents, **options)
    assert index_images(file, 0, "image") is None
    assert by_arrow(file, [2]) == [contents[2]]


def test_text_is_no_image(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["x" * 20_000] * 9}), tmp_path / "a.parquet")
    assert index_images(tmp_path / "a.parquet", 0, "image") is None


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["snappy", "none"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_damaged_byte_gives_what_arrow_gives(
    tmp_path: Path, compression: str, dictionary: bool
) -> None:
    """Anywhere in the pages: where Arrow reads on, the same is read; never anything else."""
    options = {"compression": compression, "use_dictionary": dictionary, "write_batch_size": 8}
    file = write(tmp_path / "a.parquet", images(24), data_page_size=1000, **options)
    whole = file.read_bytes()
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    rng = np.random.default_rng(0)
    heads = [*range(start, start + 30), *range(chunk.data_page_offset, chunk.data_page_offset + 30)]
    places = [*heads, *rng.integers(start, start + chunk.total_compressed_size, 60).tolist()]
    rows, kept = list(range(24)), 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        index_images.cache_clear()
        index = index_images(file, 0, "image")
        if index is None:
            continue
        kept += 1
        try:
            expected = by_arrow(file, rows)
        except (pa.ArrowException, OSError):
            continue  # by what is not looked at here, as the kind of a level that no one uses
        assert list(index.read(rows)) == expected
    assert kept >= 30  # damage inside an image is met when it is decoded


def test_a_file_cut_short_has_no_index(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", images(20))
    file.write_bytes(file.read_bytes()[:-100])
    assert index_images(file, 0, "image") is None


# Decoding -----------------------------------------------------------------------------------------

TARGET = Target(resolution=16, channels=3, fit="squash")


def decoder_of(file: Path) -> ChunkDecoder:
    """The decoder of the first row group, every row a sample."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    rows = np.arange(group.num_rows)
    return ChunkDecoder(
        StreamedRecords(
            labels=torch.zeros(len(rows), dtype=torch.int64),
            class_names=(),
            prompts=torch.zeros(len(rows), 1, dtype=torch.int64),
            captions=("",),
            class_captions=(),
            description="",
            groups=[
                RowGroup(
                    file=file,
                    name=file.name,
                    index=0,
                    start=0,
                    count=group.num_rows,
                    size_bytes=group.total_byte_size,
                )
            ],
            rows=[rows],
            image_column="image",
            config=DataConfig(resolution=16, channels=3, fit="squash", caption=("",)),
        )
    )


def decoded(decoder: ChunkDecoder, rows: list[int]) -> tuple[np.ndarray, dict[int, str]]:
    """Images of `rows`, and why a row could not be decoded, by its place."""
    index_images.cache_clear()
    images = np.zeros((len(rows), 3, 16, 16), np.uint8)
    places = decoder._decode(np.array(rows), images)
    return images, {place: decoder._damaged[rows[place]] for place in places}


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_a_task_decodes_its_rows_whoever_reads_them(tmp_path: Path, compression: str) -> None:
    contents: list[bytes | None] = [encoded(noise(row, (90, 90, 3))) for row in range(12)]
    contents[4], contents[9] = None, b"not an image"
    file = write(tmp_path / "a.parquet", contents, kind=pa.binary(), compression=compression)
    assert (index_images(file, 0, "image") is None) == (compression == "zstd")
    rows = [1, 4, 8, 9, 11]
    arena, damaged = decoded(decoder_of(file), rows)
    assert damaged == {1: "no image", 3: "not an image"}
    for place in (0, 2, 4):
        assert np.array_equal(arena[place], decode(contents[rows[place]], TARGET)[0])


def test_a_page_that_nobody_can_read_loses_its_rows(tmp_path: Path) -> None:
    contents: list[bytes | None] = [encoded(noise(row, (90, 90, 3))) for row in range(12)]
    file = write(tmp_path / "a.parquet", contents, kind=pa.binary())
    decoder = decoder_of(file)
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(1)
    content = bytearray(file.read_bytes())
    content[chunk.dictionary_page_offset : chunk.dictionary_page_offset + 16] = b"\xff" * 16
    file.write_bytes(content)
    _, damaged = decoded(decoder, [2, 3, 5])
    assert sorted(damaged) == [0, 1, 2]
    assert damaged[0].startswith("the file cannot be read here (")


def test_a_file_that_is_cut_while_it_is_read_loses_the_rows_behind(tmp_path: Path) -> None:
    contents: list[bytes | None] = [encoded(noise(row, (90, 90, 3))) for row in range(12)]
    file = write(tmp_path / "a.parquet", contents, kind=pa.binary())
    decoder = decoder_of(file)
    assert index_images(file, 0, "image") is not None
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    images = np.zeros((12, 3, 16, 16), np.uint8)
    decoder._decode(np.arange(12), images)
    damaged = decoder._damaged
    assert list(damaged) == list(range(min(damaged), 12))
    assert 3 <= len(damaged) <= 9
    assert "it ends at byte" in damaged[11]
