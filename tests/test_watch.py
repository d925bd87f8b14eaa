"""`sfumato watch`: what a look at a growing run tells, how it is drawn, and what it costs."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sfumato.base.errors import InputError
from sfumato.base.lock import locked
from sfumato.cli.watch_pictures import Drawing, cells_of, half_blocks
from sfumato.cli.watch_view import _figures, blocks, curve, means, side_by_side
from sfumato.report.grids import labelled_grid
from sfumato.studies.watching import GrowingLog, Watched, lines_of
from sfumato.training.records import append_record, cut_back, read_records

SMALL_RUN = Path(__file__).parent / "data" / "small-run"
OLD = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 64,000 images that nobody has written to for years."""
    folder = Path(shutil.copytree(SMALL_RUN, tmp_path / "small"))
    os.utime(folder / "metrics.jsonl", OLD)
    return folder


def text_of(*folders: Path, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    views = [Watched(folder).look() for folder in folders]
    console.print(side_by_side(views, width, Drawing("shades")))
    console.file.close()
    return console.export_text()


# Reading ------------------------------------------------------------------------------------------


def test_a_finished_run(run: Path) -> None:
    view = Watched(run).look()
    records = read_records(run / "metrics.jsonl")
    assert (view.state, view.preset, view.problems) == ("finished", "digits", ())
    assert (view.images_seen, view.total_images) == (64_000, 64_000)
    assert view.losses == [(one["images"], one["loss"]) for one in records]
    assert view.newest == records[-1]
    assert view.samples == run / "samples" / "images-000064000.png"
    assert (view.images_per_second, view.seconds_left) == (None, None)


def test_what_was_saved_counts_before_it_is_logged(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    view = Watched(run).look()
    assert (view.images_seen, view.state) == (64_000, "finished")


def test_a_run_in_training_has_its_time_left(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    cut_back(run / "metrics.jsonl", images_seen=32_000)
    os.utime(run / "metrics.jsonl", OLD)
    append_record(run / "timing.jsonl", {"images": 30_000, "images_per_second": 100.0})
    watched = Watched(run)
    assert watched.look().state == "stopped"
    assert watched.look().seconds_left is None
    with locked(run):
        view = watched.look()
    assert (view.state, view.seconds_left) == ("training", 320.0)
    os.utime(run / "metrics.jsonl")  # as seen from a machine that does not see the lock
    assert watched.look().state == "training"


def test_a_growing_log_is_read_on_and_begun_again_where_it_was_cut_back(run: Path) -> None:
    watched = Watched(run)
    watched.look()
    append_record(run / "metrics.jsonl", {"images": 64_640, "loss": 0.5})
    assert watched.look().losses[-1] == (64_640, 0.5)
    cut_back(run / "metrics.jsonl", images_seen=32_000)
    append_record(run / "metrics.jsonl", {"images": 32_016, "loss": 0.25})
    view = watched.look()
    assert [images for images, _ in view.losses[-2:]] == [32_000, 32_016]
    assert view.newest["loss"] == 0.25


def test_points_stay_few_however_long_a_run_is_watched(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    log = GrowingLog(file)
    for start in range(0, 20_000, 500):
        with file.open("a") as opened:
            opened.writelines(
                json.dumps({"images": i, "loss": i}) + "\n" for i in range(start, start + 500)
            )
        log.read()
    images = [seen for seen, _ in log.points]
    assert images == sorted(set(images))
    assert (images[0], images[-1]) == (0, 19_999)
    assert len(images) <= 4_000


def test_lines_at_even_distances_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"images": i, "loss": 0}) + "\n" for i in range(10_000)))
    with file.open("a") as opened:
        opened.write('{"images": 10000, "lo')  # is being written
    with file.open("rb") as opened:
        found = [record["images"] for record in lines_of(opened, 100)]
    assert found[-1] == 9_999
    assert len(found) == 101
    assert max(np.diff(found)) <= 110


def test_the_first_view_of_a_million_records_takes_less_than_two_seconds(tmp_path: Path) -> None:
    shutil.copy(SMALL_RUN / "experiment.yaml", tmp_path)
    line = '{"images": %d, "step": %d, "loss": 0.11203125, "grad_norm": 0.0715, "lr": 0.0005}\n'
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(line % (16 * step, step) for step in range(1, 1_000_001))
    started = time.process_time()
    view = Watched(tmp_path).look()
    assert time.process_time() - started < 1
    assert view.images_seen == 16_000_000
    command = [sys.executable, "-X", "importtime", "-m", "sfumato", "watch", str(tmp_path)]
    before = os.times()
    done = subprocess.run([*command, "--once"], capture_output=True, text=True, check=True)
    after = os.times()
    assert "loss" in done.stdout
    assert after.children_user - before.children_user < 2  # of a core; others may be busy
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rich.table" in imported
    assert not imported & {"torch", "transformers", "diffusers"}


# Drawing ------------------------------------------------------------------------------------------


def test_blocks_are_as_high_as_their_values() -> None:
    assert blocks([0, 1, 2, 3], 1) == ["▁▃▆█"]
    assert blocks([0, 7.5, 15], 2) == [" ▁█", "▁██"]
    assert blocks([5, 5], 1) == ["▁▁"]


def test_means_of_equal_parts() -> None:
    assert means([(0, 1.0), (1, 3.0), (10, 5.0)], 2) == [2.0, 5.0]
    assert means([(0, 1.0), (100, 5.0)], 5) == [1.0, 1.0, 1.0, 1.0, 5.0]
    assert means([(7, 1.0), (7, 3.0)], 2) == [2.0, 2.0]


def test_a_curve_has_the_range_of_what_it_shows() -> None:
    lines = [line.plain for line in curve([(50, 1.0), (100, 2.0)], 40)]
    assert lines[0] == "      2 ┤" + " " * 30 + "█"
    assert lines[5] == "      1 ┤" + "▁" * 30 + "█"
    assert lines[6] == "         50 images                   100"
    spread = [line.plain for line in curve([(1, 1.0), (2, 9.0)], 60)]
    assert "logarithmic" in spread[6]
    assert len(spread[6]) == 60


def test_the_cells_of_a_grid_are_found() -> None:
    from torch import Tensor, randint, uint8

    images: list[Tensor] = [randint(0, 200, (3, 16, 16), dtype=uint8) for _ in range(6)]
    png = labelled_grid(
        [images[:3], images[3:]],
        row_labels=["w = 1", "w = 2"],
        column_labels=["a", "b", "a long label"],
    )
    file = Path("grid.png")
    file.write_bytes(png)
    with Image.open(file) as grid:
        cells = cells_of(grid.convert("RGB"))
    assert len(cells) == 3
    for cell, image in zip(cells, images[3:], strict=True):
        small = np.asarray(cell.resize((16, 16), Image.Resampling.BOX))
        np.testing.assert_array_equal(small, image.permute(1, 2, 0).numpy())
    assert cells_of(Image.new("RGB", (100, 100), "white")) == []
    assert cells_of(Image.new("RGB", (9, 9), "black")) == []


def test_half_blocks_have_the_colours_of_two_pixels() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(3, 2, 3)
    lines = half_blocks(Image.fromarray(pixels))
    styles = [[str(span.style) for span in line.spans] for line in lines]
    assert styles == [
        ["rgb(0,1,2) on rgb(6,7,8)", "rgb(3,4,5) on rgb(9,10,11)"],
        ["rgb(12,13,14) on rgb(12,13,14)", "rgb(15,16,17) on rgb(15,16,17)"],
    ]


@pytest.mark.parametrize("width", [30, 60, 80, 120, 200])
def test_runs_stand_side_by_side_where_there_is_room(run: Path, width: int) -> None:
    lines = text_of(run, run, run, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert max(line.count("finished") for line in lines) == max(1, min(3, (width + 3) // 53))
    assert sum(line.count("finished") for line in lines) == 3
    assert sum(line.count("samples after 64,000 images") for line in lines) == 3


def test_numbers_that_are_none_are_left_out_of_a_curve(run: Path) -> None:
    (run / "metrics.jsonl").write_text(
        '{"images": 5, "loss": NaN}\n{"images": 6}\n{"images": 7, "loss": 0.5}\n'
    )
    assert Watched(run).look().losses == [(7, 0.5)]


def test_a_run_without_records_and_one_that_is_damaged(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"images": 5, "loss": 0.5}\nnot JSON\n')
    (run / "samples" / "images-000064000.png").write_bytes(b"\x89PNG")
    shown = text_of(run)
    assert "metrics.jsonl cannot be read" in shown
    assert "images-000064000.png cannot be read" in shown
    shutil.rmtree(run / "samples")
    (run / "metrics.jsonl").unlink()
    assert "no step logged yet" in text_of(run)


# The command --------------------------------------------------------------------------------------


def test_one_view_is_printed_and_nothing_is_written(sfumato, run: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    for arguments in (["--once"], []):  # a pipe is no terminal
        shown = sfumato("watch", str(run), *arguments)
        assert (shown.code, shown.err) == (0, "")
        assert "100 %  64,000 of 64,000 images" in shown.out
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_what_is_no_run_is_refused(tmp_path: Path, refused, monkeypatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("absent", "file", "empty"):
        with refused(InputError):
            Watched(tmp_path / name)

    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)  # root may read anything
    with refused(InputError):
        Watched(tmp_path / "empty")


def test_what_is_not_needed_gives_room_to_the_time_left(run: Path) -> None:
    view = replace(
        Watched(run).look(), memory_bytes=1_300_000_000, images_per_second=53.1, seconds_left=815
    )
    assert _figures(view, 80) == "loss 0.2633  lr 2.6e-07  53.1 images/s  1.30 GB  13:35 left"
    assert _figures(view, 50) == "loss 0.2633  lr 2.6e-07  53.1 images/s  13:35 left"
    assert _figures(view, 45) == "loss 0.2633  53.1 images/s  13:35 left"


def test_what_somebody_put_beside_the_samples_is_passed_over(run: Path) -> None:
    shutil.copy(run / "samples" / "images-000064000.png", run / "samples" / "images-final.png")
    assert Watched(run).look().samples == run / "samples" / "images-000064000.png"


def test_a_long_log_of_one_line_and_a_narrow_terminal(run: Path) -> None:
    text_of(run, width=8)
    (run / "metrics.jsonl").write_bytes(b"x" * 2_000_000)
    view = Watched(run).look()
    assert (view.losses, view.newest) == ([], {})
