"""`sfumato runs`: what a look at run folders tells, also of damaged ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.base.lock import is_locked, locked
from sfumato.studies.listing import BestFigure, RunSummary, run_folders, summaries, summary
from sfumato.training.records import append_record

SMALL_RUN = Path(__file__).parent / "data" / "small-run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 64,000 images in `runs/small`."""
    return Path(shutil.copytree(SMALL_RUN, tmp_path / "runs" / "small"))


def interrupt(run: Path) -> None:
    """As if it had been stopped at 32,000 images, and killed a little later."""
    shutil.rmtree(run / "checkpoints" / "images-000064000")


def test_a_finished_run(run: Path) -> None:
    found = summary(run)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (found.state, found.preset) == ("finished", "digits")
    assert (found.images_seen, found.total_images) == (64_000, 64_000)
    assert (found.loss, found.best, found.problems) == (last["loss"], None, ())


def test_an_interrupted_run_goes_on_from_its_checkpoint(run: Path) -> None:
    interrupt(run)
    found = summary(run)
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = {record["images"]: record["loss"] for record in records}
    assert (found.state, found.images_seen) == ("interrupted", 32_000)
    assert found.loss == losses[max(images for images in losses if images <= 32_000)]


def test_a_run_is_training_while_its_lock_is_held(run: Path) -> None:
    interrupt(run)
    before = sorted(run.iterdir())
    script = f"""
from pathlib import Path
from sfumato.base.lock import locked
with locked(Path({str(run)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        held, found = is_locked(run), summary(run)
        other.kill()
    assert held
    assert found.state == "training"
    assert found.images_seen == 64_000  # by the newest line of metrics.jsonl
    assert (run / ".lock").exists()  # left by the killed process
    assert summary(run).state == "interrupted"
    with locked(run):  # a look leaves no lock behind
        pass
    assert sorted(run.iterdir()) == before


def test_epochs_are_counted_by_the_training_images(run: Path) -> None:
    file = run / "experiment.yaml"
    file.write_text(file.read_text().replace("  images: 64000\n  epochs: null", "  epochs: 2.5"))
    assert summary(run).total_images is None
    assert summary(run).state == "interrupted"
    write_json(run / "images.json", {"count": 1000, "sha256": "", "changes": []})
    assert (summary(run).total_images, summary(run).state) == (2500, "finished")


def estimate(right: int, count: int) -> dict:
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return {"value": right / count, "low": low, "high": high, "count": count, "percent": True}


def test_the_best_figure_is_that_of_the_highest_lower_limit(run: Path) -> None:
    append_record(run / "accuracy.jsonl", {"images": 1, "count": 10, "correct": {"1": 10}})
    append_record(
        run / "accuracy.jsonl", {"images": 2, "count": 200, "correct": {"1": 180, "2": 190}}
    )
    quick = summary(run).best
    assert quick is not None
    assert (quick.value, quick.guidance_scale, quick.source) == (0.95, 2, "accuracy.jsonl")
    assert quick.low == pytest.approx(estimate(190, 200)["low"], abs=1e-12)
    assert quick.high == pytest.approx(estimate(190, 200)["high"], abs=1e-12)

    choice = {"class_accuracy": estimate(970, 1000), "guidance_scale": 1.5}
    write_json(run / "tuning" / "tuning.json", {"choice": choice})
    tuned = summary(run).best
    assert tuned is not None
    assert (tuned.value, tuned.guidance_scale) == (0.97, 1.5)

    rows = [
        {
            "settings": {"guidance_scale": w, "seeds": [0, 499]},
            "metrics": {"class_accuracy": estimate(right, 500)},
        }
        for w, right in ((1, 480), (3, 495))
    ]
    write_json(run / "evaluation" / "card.json", {"rows": [*rows, {"settings": {}, "metrics": {}}]})
    expected = {name: value for name, value in estimate(495, 500).items() if name != "percent"}
    assert summary(run).best == BestFigure(
        **expected, guidance_scale=3, source="evaluation/card.json"
    )
    assert not summary(run).problems


def test_the_newest_whole_checkpoint_counts(run: Path) -> None:
    file = run / "checkpoints" / "images-000064000" / "average.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    found = summary(run)
    assert (found.state, found.images_seen) == ("interrupted", 32_000)
    assert found.problems[0].startswith("checkpoint images-000064000 is damaged: average")
    (run / "checkpoints" / "images-000032000" / "state.json").write_text("[]")
    assert summary(run).state == "damaged"


@pytest.mark.parametrize(
    ("file", "text", "state"),
    [
        ("experiment.yaml", "name: [", "damaged"),
        ("experiment.yaml", "name: x\nunheard_of: 1\n", "damaged"),
        ("experiment.yaml", None, "damaged"),
        ("metrics.jsonl", '{"images": 3}\n', "finished"),
        ("metrics.jsonl", "3\n", "finished"),
        ("accuracy.jsonl", '{"count": 3, "correct": {"1": 4}}\n', "finished"),
        ("accuracy.jsonl", "[]\n", "finished"),
        ("tuning/tuning.json", "{", "finished"),
        ("evaluation/card.json", '{"rows": 3}', "finished"),
        ("evaluation/card.json", "", "finished"),
    ],
)
def test_what_is_damaged_is_a_row_that_says_so(
    sfumato, run: Path, file: str, text: str | None, state: str
) -> None:
    path = run / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    assert summary(run).state == state
    (problem,) = summary(run).problems
    assert Path(file).name in problem
    listed = sfumato("runs", str(run.parent))
    assert listed.code == 0
    assert "small" in listed.out
    assert " ".join(problem.split())[:40] in " ".join(listed.out.split())


def test_folders_are_found_at_any_depth_and_not_inside_runs(run: Path) -> None:
    deep = run.parent / "ablation" / "width" / "seed-1"
    shutil.copytree(run, deep)
    shutil.copytree(run, run / "old")
    (run.parent / "no-run").mkdir()
    (run.parent / "no-run" / "card.json").write_text("{}")
    assert set(run_folders(run.parent)) == {run, deep}
    assert {one.folder for one in summaries(run.parent)} == {"small", "ablation/width/seed-1"}
    assert [one.folder for one in summaries(run)] == [str(run)]


def test_a_table_fits_80_columns_and_json_has_every_number(sfumato, run: Path) -> None:
    long = run.with_name("a-very-long-name-that-does-not-fit-[bold]-into-a-column-of-a-table")
    shutil.copytree(run, long)
    (long / "experiment.yaml").write_text(
        (run / "experiment.yaml").read_text().replace("images: 64000", "images: 1234567890")
    )
    append_record(long / "accuracy.jsonl", {"images": 1, "count": 200, "correct": {"1.25": 200}})
    listed = sfumato("runs", str(run.parent)).out
    assert max(map(len, listed.splitlines())) <= 80
    assert "of 1,234,567,890" in listed
    assert "100.0 (98.1-100.0)" in listed
    assert "w = 1.25, of 200" in listed
    names = "".join(line[:20].split(" ")[0] for line in listed.splitlines())
    assert "[bold]" in names
    values = json.loads(sfumato("runs", str(run.parent), "--json").out)
    found = {one["folder"]: one for one in values}
    assert set(found) == {"small", long.name}
    assert found[long.name]["best"]["count"] == 200
    assert set(found["small"]) == set(RunSummary.__dataclass_fields__)


def test_nothing_below_a_folder(sfumato, tmp_path: Path, refused) -> None:
    assert sfumato("runs", str(tmp_path)).out == f"No runs below {tmp_path}.\n"
    assert json.loads(sfumato("runs", str(tmp_path), "--json").out) == []
    with refused(InputError):
        summaries(tmp_path / "absent")


def test_a_look_imports_no_torch(run: Path) -> None:
    script = f"""
import sys
sys.argv = ["sfumato", "runs", {str(run.parent)!r}]
from sfumato.cli import main
try:
    main()
except SystemExit as leaving:
    print("torch" in sys.modules, "scipy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("False False\n"), done.stderr
