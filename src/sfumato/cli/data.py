"""What the commands say of a data set."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from rich.console import Console
from rich.table import Table

from sfumato.base.errors import InputError, nearest
from sfumato.base.files import write_bytes
from sfumato.bench.synthetic import LIKE, Order, synthesize
from sfumato.cli.show import Line, clock, say, unused
from sfumato.config.schema import ClassifierExperiment, DiffusionExperiment, load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.loaders import open_training, resolve_loading
from sfumato.data.prepare import prepare
from sfumato.data.prepared import IMAGES
from sfumato.data.records import Annotations, Records, Split, load_records, open_images, source_name
from sfumato.data.survey import Survey, resolve, settle, survey
from sfumato.data.table import list_damage
from sfumato.report.samples import caption_grid, class_grid

_MOST_CLASSES = 40
WithData = TypeVar("WithData", DiffusionExperiment, ClassifierExperiment)


def look_at_data(experiment: WithData) -> WithData:
    """The experiment with what was found in its images, which is said for the person to check."""
    found = survey(experiment.data)
    say(found.sentence())
    data = settle(experiment.data, found)
    is_judge = isinstance(experiment, ClassifierExperiment)
    if is_judge:
        records: Annotations = load_records(data, "classifier", on_rows=progress("read"))
    else:
        data = resolve_loading(data)
        records = open_training(data, on_rows=progress("read"))
    captions = (
        f"; {len(records.captions):,} caption{'s' * (len(records.captions) > 1)}, such as "
        f"'{_example(records)}'"
    )
    say(
        f"Training on {len(records):,} of them at {_form(data)}{'' if is_judge else captions}."
        + (" Streamed from the files." if data.loading == "stream" and not is_judge else "")
    )
    if len(records.captions) == 1 and not is_judge:
        say(
            "All have the same caption: a model of them draws the same for any words. A text file "
            "beside each image, a line of metadata.jsonl or a class folder gives it its own."
        )
    if records.resized and records.resized < len(records):
        size = f"{data.resolution}x{data.resolution}"
        count = f"{records.resized:,} of {len(records):,}"
        say(f"{count} are not {size}: resized (data.fit={data.fit}).")
    if records.damage:
        say(f"Skipped {len(records.damage):,} damaged rows:")
        say("  " + "\n  ".join(list_damage(records.damage, most=5)))
    return experiment.model_copy(update={"data": data})


def _form(data: DataConfig) -> str:
    colours = "greyscale" if data.channels == 1 else "RGB"
    return f"{data.resolution}x{data.resolution}, {colours}"


def _example(records: Annotations, most: int = 80) -> str:
    captions, _ = records.examples()
    text = captions[min(7, len(captions) - 1)]
    return text if len(text) <= most else text[: most - 1] + "…"


def progress(doing: str) -> Callable[[int, int], None]:
    """A line of progress for data that take more than a moment."""
    line, started, before = Line(every_seconds=5.0), time.monotonic(), -1

    def on_rows(done: int, total: int) -> None:
        nonlocal before
        if before < 0:  # what an earlier command did is not this one's speed
            before = done
        seconds = time.monotonic() - started
        speed = (done - before) / seconds
        if seconds > 2 and speed > 0:
            line.show(
                f"  {doing} {done:,} of {total:,} images  {speed:,.0f} images/s  "
                f"{clock((total - done) / speed)} left",
                final=done == total,
            )

    return on_rows


def make_synthetic(
    folder: Path, *, like: str, files: int, rows: int, row_group: int, order: str, seed: int
) -> None:
    """Make a synthetic data set and say where it is."""
    if like not in LIKE:
        raise InputError(f"--like {like}: nothing by this name.", hint=nearest(like, list(LIKE)))
    synthesis = LIKE[like](
        files=files, rows=rows, row_group=row_group, order=cast(Order, order), seed=seed
    )
    started = time.monotonic()
    paths = synthesize(folder, synthesis, on_rows=progress("made"))
    size = sum(path.stat().st_size for path in paths)
    say(
        f"{folder}: {len(paths)} files, {files * rows:,} synthetic paintings, "
        f"{size / 1e9:.3g} GB ({clock(time.monotonic() - started)})"
    )
    say(f"Look at them: sfumato data show {folder} --set data.label_column=style")


def prepare_data(source: str, out: Path, settings: Sequence[str], *, resolution: int) -> None:
    """Decode and resize all of a source once, and say what became of it."""
    chosen = [f"data.source={json.dumps(source)}", f"data.resolution={resolution}"]
    config = load_experiment("small", [*chosen, *settings]).data
    started = time.monotonic()
    result = prepare(config, out, on_rows=progress("prepared"))
    made = result.manifest
    if result.already:
        say(f"{out} is prepared already, and whole: every checksum is right.")
    if result.damage:
        say(f"Skipped {len(result.damage):,} damaged rows:")
        say("  " + "\n  ".join(list_damage(result.damage)))
    count, channels, side, _ = made.shape
    colours = "greyscale" if channels == 1 else "RGB"
    size = (out / IMAGES).stat().st_size
    say(
        f"{out}: {count:,} images of {made.source} at {side}x{side}, {colours}, "
        f"{size / 1e9:.3g} GB ({clock(time.monotonic() - started)})"
    )
    say(f"Train on them: sfumato train PRESET --data {out} --set data.resolution={side}")


def show_data(source: str, settings: Sequence[str], *, out: Path) -> None:
    """Read all of a data set, say what is in it, and draw a grid of samples."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: a grid is a PNG.", hint="End the name with .png.")
    chosen = f"data.source={json.dumps(source)}"
    config = load_experiment("small", [chosen, *settings]).data
    found = survey(config)
    say(found.sentence())
    config = resolve(config, found)
    # Damage is what is to be shown here, so that it ends nothing unless no image is left.
    config = config.model_copy(update={"max_damaged": 1.0})
    names: list[Split] = ["train", "test"]
    if "classifier" in open_images(config).parts:
        names.insert(1, "classifier")
    started = time.monotonic()
    splits = {name: load_records(config, name, on_rows=progress("read")) for name in names}
    _print_facts(config, found, splits, time.monotonic() - started)
    _print_classes(splits)
    for name, records in splits.items():
        if records.damage:
            share = len(records.damage) / (len(records) + len(records.damage))
            say(f"\nDamaged in {name}, rows counted from 0 ({100 * share:.3g} %):")
            say("  " + "\n  ".join(list_damage(records.damage)))
    path = unused(out)
    shown = splits["train"]
    draw = caption_grid if found.captions or not shown.class_names else class_grid
    title = f"{source_name(config)}: {len(shown):,} training images at {_form(config)}"
    write_bytes(path, draw(shown, title=title))
    say(f"\nGrid       {path}")


def _print_facts(
    config: DataConfig, found: Survey, splits: Mapping[Split, Records], seconds: float
) -> None:
    count = sum(len(records) + len(records.damage) for records in splits.values())
    held = ", held out by data.split_seed" if "all" in found.counts else ""
    facts = {
        "Source": f"{source_name(config)} ({found.layout})",
        "Images": ", ".join(f"{name} {len(records):,}" for name, records in splits.items()) + held,
        "Files": ", ".join(
            f"{name} {100 * number / sum(found.formats.values()):.3g} %"
            for name, number in found.formats.items()
            if name != "raw"
        )
        or "arrays of pixels",
        "Captions": f"{' | '.join(config.caption)}, such as '{_example(splits['train'])}'",
        "Training": f"{_form(config)}, fit: {config.fit}",
        "Read": f"{count:,} images in {seconds:.2f} s: {count / seconds:,.0f} images/s",
    }
    say("\n".join(f"{name:<10} {text}" for name, text in facts.items()))


def _print_classes(splits: Mapping[Split, Records]) -> None:
    names = splits["train"].class_names
    if not names:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    counts = [
        torch.bincount(records.labels, minlength=len(names)).tolist() for records in splits.values()
    ]
    for label, name in list(enumerate(names))[:_MOST_CLASSES]:
        table.add_row(name, *(f"{column[label]:,}" for column in counts))
    say("")
    Console().print(table)
    if len(names) > _MOST_CLASSES:
        say(f"and {len(names) - _MOST_CLASSES:,} classes more")
