"""Streaming from Parquet: the order, the same batches for any ranks and workers, damage, resume."""

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import ConfigError, DamagedDataError, SfumatoError
from sfumato.config.sections import DataConfig
from sfumato.data.loaders import open_training, resolve_loading, training_batches
from sfumato.data.loading import Batch
from sfumato.data.records import load_records
from sfumato.data.sources.parquet_pages import index_images
from sfumato.data.streaming.decoder import StreamedRecords
from sfumato.data.streaming.order import BUFFER_IMAGES, STREAMS, WINDOW_IMAGES, StreamOrder
from sfumato.data.streaming.stream import StreamBatches, open_stream
from tests.messages import IN_BRACKETS
from tests.pictures import encoded, noise, write_parquet

CPU = torch.device("cpu")
FILES, ROWS = 72, 1131
"""WikiArt's, as the Hub has it."""
STYLES = (
    2782, 98, 110, 4334, 4240, 1615, 481, 2235, 1391, 6736, 934, 1343, 13060, 1279,
    1337, 2405, 314, 2552, 513, 1483, 6450, 10733, 2089, 7019, 4528, 216, 1167,
)  # fmt: skip
"""Paintings of each of WikiArt's 27 styles: 72 files of 1,131 rows hold all but a few."""


def row_groups(rows: int) -> list[int]:
    """Sizes of the row groups of all files where a group has at most `rows`."""
    full, rest = divmod(ROWS, rows)
    return ([rows] * full + [rest] * (rest > 0)) * FILES


def style_entropy(styles: np.ndarray) -> float:
    """Mean entropy in nats of the styles of batches of 64."""
    entropies = []
    for batch in styles[: len(styles) // 64 * 64].reshape(-1, 64):
        share = np.unique(batch, return_counts=True)[1] / 64
        entropies.append(-(share * np.log(share)).sum())
    return float(np.mean(entropies))


# Order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [100, 1131])
def test_batches_of_style_sorted_files_are_mixed_at_true_scale(rows: int) -> None:
    styles = np.resize(np.repeat(np.arange(27), STYLES), FILES * ROWS)
    order = StreamOrder(row_groups(rows), seed=1)
    drawn = styles[order.indices(0, order.count).numpy()]
    ideal = style_entropy(np.random.default_rng(0).permutation(styles))
    assert style_entropy(drawn) >= 0.94 * ideal
    by_file = np.concatenate(np.random.default_rng(0).permutation(np.split(styles, FILES)))
    assert style_entropy(by_file) < 0.4 * ideal  # the paper's file after file


@pytest.mark.parametrize("sizes", [[1], [3, 0, 4], [40, 1, 7], [500, 3], [100] * 44])
def test_every_epoch_has_every_sample_once_in_another_order(sizes: list[int]) -> None:
    order, total = StreamOrder(sizes, seed=5), sum(sizes)
    epochs = order.indices(0, 3 * total).split(total)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(total))
    if total > 10:
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[0], StreamOrder(sizes, seed=6).indices(0, total))
    middle = order.indices(total // 2, total)
    assert torch.equal(middle, order.indices(0, 2 * total)[total // 2 :][:total])


@pytest.mark.parametrize("world_size", [1, 2, 4, STREAMS])
@pytest.mark.parametrize("start", [0, 1, 70_000])
def test_chunks_of_all_ranks_make_the_order(world_size: int, start: int) -> None:
    order = StreamOrder(row_groups(100), seed=2)
    until = start + 20_000
    at: dict[int, int] = {}
    for rank in range(world_size):
        first = start
        for chunk in order.chunks(start, rank=rank, world_size=world_size):
            assert first <= chunk.first_place  # in the order of need
            first = chunk.first_place
            if first >= until:
                break
            at.update(zip(chunk.places.tolist(), chunk.samples.tolist(), strict=True))
            group = np.searchsorted(order.starts, chunk.samples, "right") - 1
            assert set(group) == {chunk.group}
            assert set(chunk.places % world_size) == {rank}
    assert [at[place] for place in range(start, until)] == order.indices(start, 20_000).tolist()


@pytest.mark.parametrize("rows", [100, 1131])
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_row_group_is_read_by_one_rank_but_for_the_cuts_between_ranks(rows, world_size) -> None:
    order = StreamOrder(row_groups(rows), seed=3)
    readers: dict[int, set[int]] = {}
    for rank in range(world_size):
        for chunk in order.chunks(0, rank=rank, world_size=world_size):
            if chunk.first_place >= order.count:
                break
            readers.setdefault(chunk.group, set()).add(rank)
    shared = [group for group, ranks in readers.items() if len(ranks) > 1]
    assert len(readers) == len(order.sizes)
    assert len(shared) <= world_size - 1


@pytest.mark.parametrize("rows", [100, 1131])
def test_no_more_images_than_the_window_are_needed_at_once(rows: int) -> None:
    """Chunks begun and not finished at each place of two epochs, of all streams together."""
    order = StreamOrder(row_groups(rows), seed=4)
    change = np.full(2 * order.count, -1)
    for chunk in order.chunks(0):
        if chunk.first_place >= len(change):
            break
        assert len(chunk.samples) <= BUFFER_IMAGES
        change[chunk.first_place] += len(chunk.samples)
    assert 0 < np.cumsum(change).max() <= WINDOW_IMAGES


# Batches ------------------------------------------------------------------------------------------


def write_set(folder: Path, *, files: int = 2, rows: int = 90, rows_in_group: int = 20) -> Path:
    """Pictures whose pixels tell them apart, in files sorted by class."""
    for file in range(files):
        write_parquet(
            folder / f"train-{file:05d}-of-{files:05d}.parquet",
            [encoded(noise(1000 * file + row)) for row in range(rows)],
            [(file * rows + row) * 5 // (files * rows) for row in range(rows)],
            names=["a", "b", "c", "d", "e"],
            row_group_size=rows_in_group,
        )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("parquet"))


def config(source: Path | str, **settings) -> DataConfig:
    given = {"resolution": 8, "channels": 3, "caption": ("A {word}", "One {word}"), **settings}
    return DataConfig(source=str(source), **given)


def batches(records: StreamedRecords, *, workers: int = 0, **settings) -> StreamBatches:
    given = {"seed": 7, "batch_size": 16, "device": CPU, **settings}
    return StreamBatches(records, workers=workers, **given)


def run_through(stream: StreamBatches, places: range) -> None:
    for seen in places:
        stream.at(seen)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(b))


def test_streamed_batches_are_the_decoded_images_in_the_stated_order(folder: Path) -> None:
    held = load_records(config(folder), "train")
    records = open_stream(config(folder), "train")
    assert len(records) == len(held) >= 150  # of 180, each held out with a chance of 0.1
    assert torch.equal(records.labels, held.labels)
    assert torch.equal(records.prompts, held.prompts)
    assert records.captions == held.captions
    assert records.examples() == held.examples()
    stream = batches(records)
    drawn: set[int] = set()
    for seen in range(0, 480, 16):  # three epochs
        batch, samples = stream.at(seen), stream.order.indices(seen, 16)
        assert torch.equal(batch.images, held.images[samples])
        assert torch.equal(batch.labels, held.labels[samples])
        assert all(p in row for p, row in zip(batch.prompts, held.prompts[samples], strict=True))
        drawn.update(batch.prompts.tolist())
    assert len(drawn) == 10  # both captions of every class


@pytest.mark.parametrize(
    ("workers", "worlds"),
    [(0, (1, 2, 4)), (1, (2,)), pytest.param(3, (1, 4), marks=pytest.mark.slow)],
)
def test_ranks_and_workers_change_no_batch(folder: Path, workers: int, worlds) -> None:
    records = open_stream(config(folder), "train")
    whole = batches(records)
    expected = [whole.at(seen) for seen in range(0, 400, 16)]
    for world_size in worlds:
        for rank in range(world_size):
            part = batches(records, workers=workers, rank=rank, world_size=world_size)
            for seen, batch in zip(range(0, 400, 16), expected, strict=True):
                mine = part.at(seen)
                for name in ("images", "labels", "prompts"):
                    wanted = getattr(batch, name)[rank::world_size]
                    assert torch.equal(getattr(mine, name), wanted)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows", [20, 90])
def test_images_found_in_large_pages_are_the_same(tmp_path: Path, rows: int, workers: int) -> None:
    """Images so large that they are read one by one, which the others here are not."""
    contents = [encoded(noise(row, (80, 90, 3))) for row in range(90)]
    file = write_parquet(
        tmp_path / "train.parquet", contents, [row // 30 for row in range(90)], row_group_size=rows
    )
    assert index_images(file, 0, "image") is not None
    held, records = (read(config(tmp_path), "train") for read in (load_records, open_stream))
    stream = batches(records, workers=workers)
    for seen in range(0, 160, 16):
        assert torch.equal(stream.at(seen).images, held.images[stream.order.indices(seen, 16)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_starts_anywhere(folder: Path, workers: int) -> None:
    records = open_stream(config(folder), "train")
    stream = batches(records)
    expected = {seen: stream.at(seen) for seen in range(0, 640, 16)}
    jumping = batches(records, workers=workers)
    for seen in (320, 336, 0, 624, 160, 160, 176):
        assert same(jumping.at(seen), expected[seen])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_window_may_be_far_smaller_than_the_data(tmp_path, monkeypatch, workers) -> None:
    """A small window for many images: it never holds more, and all of them come out of it."""
    monkeypatch.setattr("sfumato.data.streaming.order.BUFFER_IMAGES", 4)
    write_set(tmp_path, files=3, rows=300, rows_in_group=100)
    held, records = (read(config(tmp_path), "train") for read in (load_records, open_stream))
    stream = batches(records, workers=workers)
    for seen in range(0, 1700, 16):
        assert torch.equal(stream.at(seen).images, held.images[stream.order.indices(seen, 16)])
        assert len(stream._ready) <= 4 * STREAMS


@pytest.mark.slow
def test_a_dead_worker_is_an_error_that_says_so(folder: Path, refused) -> None:
    stream = batches(open_stream(config(folder), "train"), workers=1)
    stream.at(0)
    worker = stream._decoded[0]._workers[0]
    with contextlib.suppress(RuntimeError):  # torch raises it from a signal handler, anywhere
        worker.kill()
        worker.join()
    with refused(SfumatoError, theirs=IN_BRACKETS):
        run_through(stream, range(16, 16_000, 16))


def test_workers_end_with_the_batches(folder: Path) -> None:
    stream = batches(open_stream(config(folder), "train"), workers=2)
    stream.at(0)
    processes = stream._decoded[0]._workers
    assert [process.exitcode for process in processes] == [None, None]
    del stream
    assert [process.exitcode for process in processes] == [0, 0]


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 120 rows in groups of 20: no image in 5 and 6, none that opens in all of 40 to 59, no
    label in 70."""
    folder = tmp_path_factory.mktemp("damaged")
    images: list[bytes | None] = [encoded(noise(row)) for row in range(120)]
    images[5], images[6] = None, b"not an image"
    images[40:60] = [b"x"] * 20
    labels = [None if row == 70 else row % 5 for row in range(120)]
    write_parquet(folder / "train.parquet", images, labels, names=list("abcde"), row_group_size=20)
    return folder


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_damaged_image_is_replaced_by_the_next_good_one(damaged: Path, workers: int) -> None:
    settings = config(damaged, max_damaged=0.3, test_share=0.02)
    held, records = load_records(settings, "train"), open_stream(settings, "train")
    rows = np.concatenate([g.start + r for g, r in zip(records.groups, records.rows, strict=True)])
    bad = {5, 6, *range(40, 60)}
    good = [row for row in rows.tolist() if row not in bad]
    assert len(good) == len(held)
    place = {row: index for index, row in enumerate(good)}
    stream = batches(records, workers=workers)
    shown: Counter[int] = Counter()
    for seen in range(0, 2 * len(records), 16):
        batch = stream.at(seen)
        wanted = []
        for sample in stream.order.indices(seen, 16).tolist():
            following = np.roll(rows, -sample).tolist()
            wanted.append(place[next(row for row in following if row not in bad)])
        assert torch.equal(batch.images, held.images[wanted])
        assert torch.equal(batch.labels, held.labels[wanted])
        shown.update(wanted)
    assert set(shown) == set(range(len(held)))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_much_damage_ends_the_run_with_its_rows(damaged: Path, workers: int, refused) -> None:
    records = open_stream(config(damaged, max_damaged=0.1, test_share=0.02), "train")
    stream = batches(records, workers=workers)
    with refused(DamagedDataError):
        run_through(stream, range(0, 240, 16))


def test_missing_labels_are_found_before_training(damaged: Path, refused) -> None:
    records = open_stream(config(damaged, test_share=0.02), "train")
    assert [(item.number, item.reason) for item in records.damage] == [(70, "no label")]
    with refused(DamagedDataError):
        open_stream(config(damaged, test_share=0.02, max_damaged=0.0), "train")


# Settings -----------------------------------------------------------------------------------------


def test_loading_is_chosen_by_size(folder: Path, monkeypatch) -> None:
    assert resolve_loading(config(folder)).loading == "memory"
    monkeypatch.setattr("sfumato.data.loaders.MOST_IN_MEMORY_BYTES", 1000)
    settings = resolve_loading(config(folder))
    assert settings.loading == "stream"
    assert resolve_loading(config("digits", channels=1)).loading == "memory"
    records = open_training(settings)
    assert isinstance(records, StreamedRecords)
    made = training_batches(records, settings, seed=7, batch_size=16, device=CPU)
    assert same(made.at(32), batches(records).at(32))


def test_what_cannot_be_streamed_says_so(folder: Path, refused) -> None:
    with refused(ConfigError):
        open_training(config("digits", channels=1, loading="stream"))
    records = open_stream(config(folder), "train")
    with refused(ConfigError):
        batches(records, batch_size=15, world_size=3)
    with refused(ConfigError):
        batches(records, world_size=3)
