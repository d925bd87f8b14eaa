"""Prepared data: the pixels, rows and splits of the source, whatever kills the pass."""

import errno
import io
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections import namedtuple
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.base.errors import ConfigError, DamagedDataError, InputError, SfumatoError
from sfumato.base.files import TEMPORARY_PREFIX
from sfumato.bench.paintings.styles import STYLES, paint
from sfumato.config.sections import DataConfig
from sfumato.data import decode, prepare
from sfumato.data.decode import Target
from sfumato.data.loading import DeviceBatches
from sfumato.data.opening import open_images, same_source
from sfumato.data.prepared import IMAGES, MANIFEST, ROWS, MappedImages
from sfumato.data.records import Records, load_records
from sfumato.data.survey import resolve, survey
from tests.pictures import encoded, noise, write_idx, write_image, write_parquet

NAMES = ["cat", "dog", "ice_cream"]
SIDE = 12


def config(source: object, **changes) -> DataConfig:
    values = {"source": str(source), "resolution": SIDE, "channels": 3, "caption": "{class_name}"}
    return DataConfig(**{**values, **changes})


def shard(path: Path, start: int, count: int, *, names: list[str] | None = None, **options) -> Path:
    """JPEGs of many sizes with a row that holds no image and one that is cut short."""
    images: list[bytes | None] = [
        encoded(noise(start + i, (20 + (start + i) % 30, 41, 3)), "JPEG") for i in range(count)
    ]
    images[3] = None
    images[7] = images[7][:200] if images[7] else None
    labels = options.pop("labels", [i % 3 for i in range(count)])
    return write_parquet(path, images, labels, names=names or NAMES, row_group_size=9, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number in range(2):
        shard(folder / f"train-{number:05d}-of-00002.parquet", 100 * number, 40)
    shard(folder / "test-00000-of-00001.parquet", 300, 25)
    return folder


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_CHUNK_ROWS", 16)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(prepared: Records, direct: Records) -> None:
    assert torch.equal(prepared.images[:], direct.images)
    assert torch.equal(prepared.labels, direct.labels)
    assert torch.equal(prepared.prompts, direct.prompts)
    assert list(prepared.captions) == list(direct.captions)
    assert list(prepared.class_names) == list(direct.class_names)
    assert list(prepared.damage) == list(direct.damage)


# What is written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_prepared_is_the_source(source: Path, tmp_path: Path, fit: str) -> None:
    direct = config(source, max_damaged=0.1, fit=fit)
    out = tmp_path / "out"
    made = prepare.prepare(direct, out)
    assert (made.manifest.images, len(made.damage), made.already) == (99, 6, False)
    assert sorted(contents(out)) == sorted([IMAGES, ROWS, MANIFEST])
    for split in ("train", "test"):
        prepared = load_records(config(out, max_damaged=0.1, fit=fit), split)
        assert_same(prepared, load_records(direct, split))
    train = load_records(config(out, max_damaged=0.1), "train")
    assert isinstance(train.images, MappedImages)
    assert [item.number for item in train.damage] == [3, 7, 3, 7]
    how = "centre-cropped and brought" if fit == "crop" else "squashed"
    assert how in train.description
    assert "prepared from Parquet" in train.description


def test_any_source_will_do_and_splits_are_kept(tmp_path: Path) -> None:
    folder, idx = tmp_path / "folder", tmp_path / "idx"
    for number in range(30):
        write_image(folder / f"{number:02d}.png", noise(number), f"picture {number}")
    write_idx(idx / "train-images-idx3-ubyte.gz", noise(0, (30, SIDE, SIDE)))
    write_idx(idx / "train-labels-idx1-ubyte.gz", np.arange(30, dtype=np.uint8) % 3)
    cases = {
        "folder": config(folder, caption="{caption}"),
        "idx": config(idx, channels=1, caption="{label}"),
        "digits": config("digits", channels=1, caption="{label}"),
    }
    for name, direct in cases.items():
        out = tmp_path / f"{name}-out"
        prepare.prepare(direct, out)
        ours = direct.model_copy(update={"source": str(out)})
        for split in ("train", "classifier", "test"):
            assert_same(load_records(ours, split), load_records(direct, split))
        again = direct.model_copy(update={"split_seed": 5, "test_share": 0.3})
        ours = ours.model_copy(update={"split_seed": 5, "test_share": 0.3})
        if name != "digits":  # these are split by the seed before they are prepared
            assert_same(load_records(ours, "test"), load_records(again, "test"))


def test_prepared_twice_it_is_the_same_source(source: Path, tmp_path: Path) -> None:
    """Runs on latents and on pixels compare, though only one of two folders has latents."""
    for name, size in {"one": 16, "two": 16, "larger": 32}.items():
        prepare.prepare(config(source, resolution=size, max_damaged=0.1), tmp_path / name)
    one, two, larger = (str(tmp_path / name) for name in ("one", "two", "larger"))
    assert same_source(one, two)
    assert not same_source(one, larger)
    assert not same_source(one, str(source))


def test_numpy_reads_the_array(source: Path, tmp_path: Path) -> None:
    prepare.prepare(config(source, max_damaged=0.1), tmp_path / "out")
    array = np.load(tmp_path / "out" / IMAGES, mmap_mode="r")
    assert (array.shape, array.dtype) == ((99, 3, SIDE, SIDE), np.uint8)
    train = load_records(config(source, max_damaged=0.1), "train")
    assert np.array_equal(array[: len(train)], train.images.numpy())


def test_auto_finds_what_was_prepared(source: Path, tmp_path: Path) -> None:
    """128 pixels are not among the resolutions that auto chooses from otherwise."""
    prepare.prepare(config(source, resolution=128, max_damaged=0.1), tmp_path / "out")
    found = resolve(DataConfig(source=str(tmp_path / "out")))
    assert (found.resolution, found.channels, found.caption) == (
        128,
        3,
        ("A photo of a {class_name}",),
    )
    sentence = survey(DataConfig(source=str(tmp_path / "out"))).sentence()
    assert sentence.startswith("Found 105 images (prepared from Parquet), 128x128, RGB; 3 classes")


def test_prepared_images_have_the_fit_that_they_were_prepared_with(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare.prepare(config(source, fit="squash", max_damaged=0.1), out)
    for given in (config(out, fit="crop"), DataConfig(source=str(out))):
        assert resolve(given).fit == "squash"
    assert resolve(config(source, fit="crop")).fit == "crop"


def test_rows_without_captions_are_damage_only_where_captions_are_used(tmp_path: Path) -> None:
    captions = [None if row in (4, 5) else f"row {row}" for row in range(20)]
    images = [encoded(noise(row)) for row in range(20)]
    write_parquet(tmp_path / "source" / "a.parquet", images, caption=captions)
    prepare.prepare(config(tmp_path / "source"), tmp_path / "out")
    for caption, missing in (("{caption}", 2), ("A thing", 0)):
        changes = {"caption": caption, "max_damaged": 0.5, "test_share": 0.05}
        ours, direct = (
            load_records(config(tmp_path / place, **changes), "train")
            for place in ("out", "source")
        )
        assert_same(ours, direct)
        assert len(ours) >= 19 - missing


# Killed -------------------------------------------------------------------------------------------


def go_on(source: Path, out: Path, killed_at: int) -> None:
    """A pass in a process of its own that is killed at its n-th write to the disk."""
    decode._CHUNK_ROWS = 16
    sync, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = fsync
    prepare.prepare(config(source, max_damaged=0.1), out)


def test_killed_anywhere_it_ends_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """SIGKILL at every third write: of images, of the journal, of the last files."""
    prepare.prepare(config(source, max_damaged=0.1), tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sfumato.data.prepare", "tests.test_prepare"])
    codes, out = [], tmp_path / "killed"
    for at in (2, 3, 4, 5, 3, 4, 100):
        process = context.Process(target=go_on, args=(source, out, at))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 6 + [0]
    assert contents(out) == contents(tmp_path / "whole")


def test_a_torn_line_of_the_journal_is_cut_off(source: Path, tmp_path: Path, refused) -> None:
    direct = config(source, max_damaged=0.1)
    prepare.prepare(direct, tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done >= 48:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(direct, out, on_rows=stop)
    with refused(InputError):
        open_images(config(out))
    with (out / "preparing.jsonl").open("ab") as file:
        file.write(b'{"rows": [["train", "x", 1')
    with (out / IMAGES).open("ab") as file:
        file.write(bytes(1000))
    (out / f"{TEMPORARY_PREFIX}rows").write_bytes(b"half")
    told: list[int] = []
    prepare.prepare(direct, out, on_rows=lambda done, total: told.append(done))
    assert told == [48, 64, 80, 96, 105]
    assert contents(out) == contents(tmp_path / "whole")


def test_no_space_left_half_way_and_then_there_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    direct = config(source, max_damaged=0.1)
    prepare.prepare(direct, tmp_path / "whole")
    out, sync, calls = tmp_path / "out", os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with refused(SfumatoError):
            prepare.prepare(direct, out)
    prepare.prepare(direct, out)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    """A real one, of 40 KB, that claims more until it is written to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount")
    direct = config(source, max_damaged=0.1)
    try:
        with refused(SfumatoError, theirs=r"(?<=, )\S+(?= GB are free)"):
            prepare.prepare(direct, disk / "out")
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage(1e12))
        with refused(SfumatoError):
            prepare.prepare(direct, disk / "out")
        grown = ["mount", "-o", "remount,size=10m", str(disk)]
        subprocess.run(grown, check=True)
        prepare.prepare(direct, disk / "out")
        prepare.prepare(direct, tmp_path / "whole")
        assert contents(disk / "out") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# What is refused ----------------------------------------------------------------------------------


def test_another_source_or_size_is_refused_and_nothing_written(
    source: Path, tmp_path: Path, refused
) -> None:
    direct, out = config(source, max_damaged=0.1), tmp_path / "out"
    prepare.prepare(direct, out)
    before = contents(out)
    with refused(InputError):
        prepare.prepare(config(source, resolution=20, max_damaged=0.1), out)
    with refused(InputError):
        prepare.prepare(config("digits"), out)
    shard(source / "train-00001-of-00002.parquet", 100, 41)
    with refused(InputError):
        prepare.prepare(direct, out)
    with refused(ConfigError):
        load_records(config(out, resolution=20), "train")
    with refused(ConfigError):
        load_records(config(out, label_column="size"), "train")
    with refused(InputError):
        prepare.prepare(config(out, max_damaged=0.1), tmp_path / "twice")
    assert contents(out) == before


def test_a_source_that_changes_before_it_goes_on_is_refused(
    source: Path, tmp_path: Path, refused
) -> None:
    out = tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config(source, max_damaged=0.1), out, on_rows=stop)
    shard(source / "train-00001-of-00002.parquet", 100, 44)
    before = contents(out)
    with refused(InputError):
        prepare.prepare(config(source, max_damaged=0.1), out)
    assert contents(out) == before


def test_a_folder_with_other_things_is_refused(source: Path, tmp_path: Path, refused) -> None:
    with refused(InputError):
        prepare.prepare(config(tmp_path / "source"), source)
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / IMAGES, np.arange(5))  # the same name, but not ours
    before = contents(tmp_path / "mine")
    with refused(InputError):
        prepare.prepare(config(source, max_damaged=0.1), tmp_path / "mine")
    assert contents(tmp_path / "mine") == before
    (tmp_path / "file").write_text("x")
    with refused(InputError):
        prepare.prepare(config(source), tmp_path / "file")


def test_too_much_damage_ends_early_and_can_be_allowed(
    source: Path, tmp_path: Path, refused
) -> None:
    told: list[int] = []
    with refused(DamagedDataError):
        prepare.prepare(config(source), tmp_path / "out", on_rows=lambda done, _: told.append(done))
    assert told == [0]
    prepare.prepare(config(source, max_damaged=0.1), tmp_path / "out")
    prepare.prepare(config(source, max_damaged=0.1), tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_files_of_two_versions_are_refused(source: Path, tmp_path: Path, refused) -> None:
    changed = source / "train-00001-of-00002.parquet"
    shard(changed, 100, 40, names=["dog", "cat", "ice_cream"])
    with refused(InputError):
        prepare.prepare(config(source), tmp_path / "out")
    shard(changed, 100, 40, labels=["cat"] * 40)
    with refused(InputError):
        prepare.prepare(config(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_altered_files_are_found(source: Path, tmp_path: Path, refused) -> None:
    direct, out = config(source, max_damaged=0.1), tmp_path / "out"
    prepare.prepare(direct, out)
    assert prepare.prepare(direct, out).already
    file = out / IMAGES
    whole = file.read_bytes()
    file.write_bytes(whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:])
    with refused(DamagedDataError):
        prepare.prepare(direct, out)
    file.write_bytes(whole[:-1])
    with refused(DamagedDataError):
        open_images(config(out))
    file.write_bytes(whole)
    values = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({**values, "format": 0}))
    with refused(InputError):
        open_images(config(out))
    (out / MANIFEST).write_text("{}")
    with refused(DamagedDataError):
        open_images(config(out))


def test_two_passes_at_once_are_refused(source: Path, tmp_path: Path, refused) -> None:
    direct, out = config(source, max_damaged=0.1), tmp_path / "out"

    def second(done: int, total: int) -> None:
        if done == 48:
            with refused(InputError):
                prepare.prepare(direct, out)

    prepare.prepare(direct, out, on_rows=second)
    prepare.prepare(direct, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


# Batches ------------------------------------------------------------------------------------------


def test_batches_are_those_of_the_source(source: Path, tmp_path: Path) -> None:
    prepare.prepare(config(source, max_damaged=0.1), tmp_path / "out")
    cpu = torch.device("cpu")
    for rank in (0, 1):
        ours, direct = (
            DeviceBatches(
                load_records(config(place, max_damaged=0.1), "train"),
                seed=1,
                batch_size=8,
                device=cpu,
                rank=rank,
                world_size=2,
            )
            for place in (tmp_path / "out", source)
        )
        for seen in range(0, 200, 8):
            one, other = ours.at(seen), direct.at(seen)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.prompts, other.prompts)


def test_mapped_images_behave_as_a_tensor_and_do_not_change_the_file(tmp_path: Path) -> None:
    prepare.prepare(config("digits", channels=1), tmp_path / "out")
    before = (tmp_path / "out" / IMAGES).read_bytes()
    images = load_records(config(tmp_path / "out", channels=1, caption="x"), "train").images
    assert isinstance(images, MappedImages)
    whole = images[:]
    assert (tuple(images.shape), len(images)) == ((897, 1, SIDE, SIDE), 897)
    chosen = torch.randperm(897)[:50]
    assert torch.equal(images[chosen], whole[chosen])
    assert torch.equal(images[7], whole[7])
    assert torch.equal(images[-3:], whole[-3:])
    parts = zip(images.split(400), whole.split(400), strict=True)
    assert all(torch.equal(one, other) for one, other in parts)
    assert torch.equal(images.to(torch.device("cpu")), whole)
    images[:][0] = 7
    assert (tmp_path / "out" / IMAGES).read_bytes() == before


def test_gathering_from_the_file_is_as_fast_as_from_memory(tmp_path: Path) -> None:
    """Random batches of 64 at 32 x 32, in turn; a ratio, for machines differ."""
    write_idx(tmp_path / "images-idx3-ubyte", noise(0, (5000, 32, 32)))
    write_idx(tmp_path / "labels-idx1-ubyte", np.zeros(5000, np.uint8))
    prepare.prepare(config(tmp_path, resolution=32), tmp_path / "out")
    mapped = load_records(config(tmp_path / "out", resolution=32), "train").images
    tensor = mapped[:]
    order = torch.randperm(len(tensor))
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(7):
        for which, images in enumerate((mapped, tensor)):
            started = time.perf_counter()
            for start in range(0, 4096, 64):
                images[order[start : start + 64]]
            seconds[which].append(time.perf_counter() - started)
    assert median(seconds[0]) < 2 * median(seconds[1])


def test_reduced_scales_change_little_and_small_images_nothing() -> None:
    """A JPEG is decoded at a half or less only where twice the target is left of it. Against
    decoding every pixel first, on a picture with edges and grain."""
    rng = np.random.default_rng(0)
    painting = paint(STYLES["Post_Impressionism"], "landscape", (1500, 1200), rng)
    target = Target(resolution=128, channels=3, fit="squash")
    for width, height, exact in ((1500, 1200, False), (511, 2000, True), (300, 200, True)):
        jpeg = encoded(np.asarray(painting.resize((width, height))), "JPEG", quality=90)
        every = np.asarray(Image.open(io.BytesIO(jpeg)))
        difference = decode.decode(jpeg, target)[0].astype(int) - decode.decode(every, target)[0]
        assert np.any(difference) != exact
        assert 10 * np.log10(255**2 / max(1e-9, np.mean(np.square(difference)))) > 36


# The command --------------------------------------------------------------------------------------


def test_the_command_prepares_and_training_reads_it(sfumato, tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / "photos" / f"{number}.png", noise(number), f"photo {number}")
    command = ("prepare", "photos", "ready", "--resolution", "8")
    made = sfumato(*command, cwd=tmp_path)
    assert made.code == 0, made.err
    assert "ready: 12 images of photos at 8x8, RGB" in made.out
    assert "sfumato train PRESET --data ready" in made.out
    again = sfumato(*command, cwd=tmp_path)
    assert "ready is prepared already, and whole: every checksum is right" in again.out
    settings = [
        *("model.block_out_channels=[8,16]", "model.levels=[plain,attention]", "sampling.steps=2"),
        *("training.images=16", "training.sample_every_images=16", "data.resolution=8"),
    ]
    chosen = [part for setting in settings for part in ("--set", setting)]
    run = sfumato("train", "small", "--data", "ready", "--out", "run", *chosen, cwd=tmp_path)
    assert run.code == 0, run.err
    assert "Found 12 images (prepared from image folder), 8x8, RGB" in run.out
    assert (tmp_path / "run" / "model" / "model_index.json").exists()


def test_bench_data_measures_both_kinds(sfumato, tmp_path: Path) -> None:
    for number in range(4):
        image = noise(number, (300, 280, 3))
        (tmp_path / f"{number}.jpg").write_bytes(encoded(image, "JPEG"))
        (tmp_path / f"{number}.txt").write_text("noise")
    decoded = sfumato("bench", "decoding", str(tmp_path), "--resolution", "16")
    assert decoded.code == 0, decoded.err
    for name in ("Ours", "Bare", "Full", "Difference"):
        assert name in decoded.out
    sfumato("prepare", str(tmp_path), str(tmp_path / "out"), "--resolution", "16")
    gathered = sfumato("bench", "decoding", str(tmp_path / "out"), "--resolution", "16")
    assert "images/s at 16x16: random batches from the mapped file" in gathered.out
    digits = sfumato("bench", "decoding", "digits", "--resolution", "8")
    assert digits.code == 2
    assert "digits holds pixels: there is nothing to decode" in digits.err
