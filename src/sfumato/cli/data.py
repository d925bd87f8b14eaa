"""`sfumato prepare`, `sfumato data`, and what a data set's commands print."""

import json
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sfumato.base.errors import DamagedDataError, DataWarning, InputError, SfumatoError
from sfumato.base.progress import Progress, clock
from sfumato.base.words import counted, set_options
from sfumato.cli.checks import checked_folder, checked_png
from sfumato.cli.options import (
    Settings,
    Source,
    register,
)
from sfumato.cli.show import log, new_table, print_table, unused
from sfumato.config.schema import (
    ClassifierExperiment,
    DiffusionExperiment,
    Experiment,
    WithImages,
    load_experiment,
)
from sfumato.config.sections import DataConfig

if TYPE_CHECKING:
    from sfumato.data.records import Annotations, Records, Split
    from sfumato.data.survey import Survey

_MOST_CLASSES = 40


def data_config(
    source: str, settings: Sequence[str] | None, *, resolution: int | None = None
) -> DataConfig:
    """The data section of the preset `small` with another source and `--set`."""
    chosen = [f"data.source={json.dumps(source)}"]
    if resolution is not None:
        chosen.append(f"data.resolution={resolution}")
    experiment = load_experiment("small", [*chosen, *(settings or [])], schema=DiffusionExperiment)
    return experiment.data


def prepare(
    source: Source,
    out: Annotated[
        Path, typer.Argument(callback=checked_folder, help="A new folder, or one to resume.")
    ],
    resolution: Annotated[int, typer.Option(min=1, help="Height and width in pixels.")] = 128,
    codec: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Write latents too: of a run, or of a VAE by its name."),
    ] = None,
    posterior: Annotated[
        Literal["mode", "sample"] | None,
        typer.Option(help="With a VAE as --codec: whether training will draw latents."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Decode and resize a data set once, so that training never waits for it. Killed, the same
    command resumes; the folder is a source: `--data OUT`."""
    _refuse_posterior_alone(codec, posterior)
    config = data_config(source, settings, resolution=resolution)
    if codec is not None:
        from sfumato.methods.codecs import check_codec

        check_codec(codec)
    from sfumato.data.prepare import prepare as prepare_images
    from sfumato.data.prepared import IMAGES

    started = time.monotonic()
    result = prepare_images(config, out, on_rows=rows_progress("images prepared"))
    made = result.manifest
    if result.already:
        log(f"{out} is prepared already, and whole: every checksum is right.")
    _print_damage("Skipped", result.damage)
    count, channels, side, _ = made.shape
    size = (out / IMAGES).stat().st_size
    log(
        f"{out}: {counted(count, 'image')} of {made.source} at {_format(side, channels)}, "
        f"{size / 1e9:.3g} GB ({clock(time.monotonic() - started)})"
    )
    log(f"Train on them: {_train_command(out, config, {'data.resolution': side})}")
    if codec is not None:
        _prepare_latents(out, codec, posterior, config)


def _refuse_posterior_alone(codec: str | None, posterior: str | None) -> None:
    if posterior is not None and codec is None:
        raise InputError(
            "--posterior says how latents are written, and without --codec none are.",
            hint="Give --codec too, or leave out --posterior.",
        )


def _prepare_latents(
    out: Path, codec: str, posterior: Literal["mode", "sample"] | None, config: DataConfig
) -> None:
    """Latents beside the images that were prepared with `config`, and how to train on them."""
    from sfumato.data.latents import FOLDER, read_latents, write_latents
    from sfumato.data.survey import resolve
    from sfumato.methods.codecs import codec_to_prepare

    changes: dict[str, object] = {"source": str(out)}
    if not config.left_out:  # captions matter to these alone
        changes |= {"caption": ("an image",), "phrases": ()}
    data = resolve(config.model_copy(update=changes))
    made, made_from = codec_to_prepare(codec, data, posterior=posterior)
    there = read_latents(out)
    if there is not None and not there.manifest.is_of(made):
        raise InputError(
            f"{there.folder} holds latents of another codec.",
            hint="Give a new folder, or remove that one.",
        )
    if there is None:
        progress = rows_progress("images encoded")
        manifest = write_latents(out, made, made_from=made_from, on_rows=progress)
    else:
        manifest = there.manifest
    channels, side = manifest.shape[3:5]
    settings = {
        "data.resolution": data.resolution,
        "codec.kind": manifest.codec["codec"],
        "codec.factor": made.factor,
        "codec.channels": channels,
        **({"codec.vae": out / FOLDER} if made_from else {}),
        **({"codec.posterior": "sample"} if made.samples else {}),
    }
    log(
        f"{out / FOLDER}: {side}x{side} latents of {channels} numbers, of every image and of its "
        "mirror image"
    )
    log(f"Train on these: {_train_command(out, config, settings)}")


def _train_command(out: Path, config: DataConfig, settings: Mapping[str, object]) -> str:
    if config.max_damaged != DataConfig().max_damaged:
        settings = {**settings, "data.max_damaged": config.max_damaged}
    words = ["sfumato", "train", "PRESET", "--data", str(out)]
    return f"{shlex.join(words)} {set_options(settings)}"


def show(
    source: Source,
    out: Annotated[Path, typer.Option(callback=checked_png, help="The PNG to write.")] = Path(
        "data.png"
    ),
    settings: Settings = None,
) -> None:
    """What is in a data set: counts, classes, sizes, captions, damage; and a grid of samples. One
    that `train` refuses ends in an error here too, after that."""
    config = data_config(source, settings)
    from sfumato.base.files import write_bytes
    from sfumato.data.opening import source_name
    from sfumato.data.survey import resolve, survey
    from sfumato.report.grids import caption_grid, class_grid

    found = survey(config)
    log(found.sentence())
    config = resolve(config, found)
    started = time.monotonic()
    splits = _read_parts(config)
    _print_facts(config, found, splits, time.monotonic() - started)
    _print_classes(splits)
    for name, records in splits.items():
        _print_damage(f"\n{name}:", records.damage)
    path, shown = unused(out), splits["train"]
    draw = caption_grid if found.captions or not shown.class_names else class_grid
    title = (
        f"{source_name(config)}: {counted(len(shown), 'training image')} at {_format_of(config)}"
    )
    write_bytes(path, draw(shown, title=title))
    log(f"\nGrid       {path}")
    _refuse_as_training(config, shown)


def _read_parts(config: DataConfig) -> "dict[Split, Records]":
    """The images of each part. Damage is an error only where nothing is left to train on; another
    part of which nothing is left is a warning."""
    from sfumato.data.opening import open_images
    from sfumato.data.records import load_records

    config = config.model_copy(update={"max_damaged": 1.0})
    parts = open_images(config).parts
    names: list[Split] = ["train", "test"]
    if "all" in parts and config.test_share == 0:
        names.remove("test")
    if "classifier" in parts:
        names.insert(1, "classifier")
    if "validation" in parts:
        names.append("validation")
    on_rows = rows_progress("images read")
    found: dict[Split, Records] = {}
    for name in names:
        try:
            found[name] = load_records(config, name, on_rows=on_rows)
        except SfumatoError as error:
            if name == "train":
                raise
            warnings.warn(f"Of the part {name}: {error.what}", DataWarning, stacklevel=2)
    return found


def _refuse_as_training(config: DataConfig, records: "Records") -> None:
    """`DamagedDataError` for damage that `train` does not take."""
    from sfumato.data.records import too_much_damage

    damaged, count = len(records.damage), len(records) + len(records.damage)
    if too_much_damage(damaged, count, config):
        raise DamagedDataError(
            f"Training refuses this data set: {damaged:,} of {counted(count, 'training row')} "
            f"cannot be used ({100 * damaged / count:.3g} %; up to "
            f"{100 * config.max_damaged:g} % are skipped).",
            hint="Mend or remove the rows above, or allow more with --set data.max_damaged=SHARE.",
        )


def synthesize(
    folder: Annotated[
        Path, typer.Argument(callback=checked_folder, help="A new folder, or one to resume.")
    ],
    like: Annotated[Literal["wikiart"], typer.Option(help="What to imitate.")] = "wikiart",
    files: Annotated[int, typer.Option(min=1, help="Parquet files; WikiArt has 72.")] = 72,
    rows: Annotated[int, typer.Option(min=1, help="Paintings in a file.")] = 1100,
    row_group: Annotated[int, typer.Option(min=1, help="Paintings in a row group.")] = 100,
    order: Annotated[
        Literal["sorted", "mixed"], typer.Option(help="sorted is by style.")
    ] = "mixed",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Make a synthetic data set in the form of a real one. Killed, the same command resumes."""
    from sfumato.bench.synthetic import LIKE
    from sfumato.bench.synthetic import synthesize as make

    synthesis = LIKE[like](files=files, rows=rows, row_group=row_group, order=order, seed=seed)
    started = time.monotonic()
    paths = make(folder, synthesis, on_rows=rows_progress("images made"))
    size = sum(path.stat().st_size for path in paths)
    log(
        f"{folder}: {len(paths)} files, {files * rows:,} synthetic paintings, "
        f"{size / 1e9:.3g} GB ({clock(time.monotonic() - started)})"
    )
    log(f"Look at them: sfumato data show {folder} --set data.label_column=style")


data_app = typer.Typer(help="Look at a data set, or make a synthetic one.", no_args_is_help=True)
register(
    data_app,
    [
        (show, "sfumato data show my-photos --out my-photos.png"),
        (synthesize, "sfumato data synthesize synthetic-wikiart --files 2"),
    ],
)


# What is printed ----------------------------------------------------------------------------------


def rows_progress(what: str) -> Callable[[int, int], None]:
    """Progress of reading or making data; what is done in a moment is not shown."""
    return Progress(after_seconds=2.0).of(what)


def resolve_data(experiment: WithImages) -> Experiment:
    """The experiment with every `auto` of its data replaced, and a report of what was found."""
    from sfumato.data.loaders import open_training, resolve_loading
    from sfumato.data.records import load_records
    from sfumato.data.survey import settle, survey

    found = survey(experiment.data)
    log(found.sentence())
    data, on_rows = settle(experiment.data, found), rows_progress("images read")
    if not isinstance(experiment, DiffusionExperiment):
        split = "classifier" if isinstance(experiment, ClassifierExperiment) else "train"
        records: Annotations = load_records(data, split, on_rows=on_rows)
        log(f"Training on {len(records):,} of them at {_format_of(data)}.")
    else:
        data = resolve_loading(data)
        records = open_training(data, on_rows=on_rows)
        _print_captions(records, data)
    if records.resized and records.resized < len(records):
        size = f"{data.resolution}x{data.resolution}"
        count = f"{records.resized:,} of {len(records):,}"
        log(f"{count} are not {size}: resized (data.fit={data.fit}).")
    _print_damage("Skipped", records.damage, most=5)
    return experiment.model_copy(update={"data": data})


def _print_captions(records: "Annotations", data: DataConfig) -> None:
    count = len(records.captions)
    log(
        f"Training on {len(records):,} of them at {_format_of(data)}; {counted(count, 'caption')}, "
        f"such as '{_example(records)}'."
        + (" Streamed from the files." if data.loading == "stream" else "")
    )
    own = int(counts.max()) if (counts := records.caption_counts) is not None else 0
    most = max(own, records.prompts.shape[1])
    if most > len(data.caption):
        log(f"Images have up to {most} captions; a step draws one of them for each.")
    if count == 1:
        log(
            "All have the same caption: a model of them ignores the prompt. A text file beside "
            "each image, a line of metadata.jsonl or a class folder gives it its own."
        )


def _format(side: object, channels: object) -> str:
    return f"{side}x{side}, {'greyscale' if channels == 1 else 'RGB'}"


def _format_of(data: DataConfig) -> str:
    return _format(data.resolution, data.channels)


def _example(records: "Annotations", most: int = 80) -> str:
    captions, _ = records.examples()
    text = captions[min(7, len(captions) - 1)]
    return text if len(text) <= most else text[: most - 1] + "…"


def _print_damage(title: str, damage: Sequence, *, most: int | None = None) -> None:
    from sfumato.data.table import list_damage

    if damage:
        log(f"{title} {counted(len(damage), 'damaged row')}, counted from 0:")
        lines = list_damage(damage) if most is None else list_damage(damage, most=most)
        log("  " + "\n  ".join(lines))


def _print_facts(
    config: DataConfig, found: "Survey", splits: "Mapping[str, Records]", seconds: float
) -> None:
    from sfumato.data.opening import open_images, source_name

    left_out = open_images(config).left_out
    count = sum(len(records) + len(records.damage) for records in splits.values())
    held = ", held out by data.split_seed" if "all" in found.counts and "test" in splits else ""
    formats = [
        f"{name} {100 * number / sum(found.formats.values()):.3g} %"
        for name, number in found.formats.items()
        if name != "raw"
    ]
    facts = {
        "Source": f"{source_name(config)} ({found.layout})",
        "Images": ", ".join(f"{name} {len(records):,}" for name, records in splits.items()) + held,
        **({"Left out": f"{left_out:,}"} if left_out else {}),
        "Files": ", ".join(formats) or "arrays of pixels",
        "Captions": f"{' | '.join(config.caption)}, such as '{_example(splits['train'])}'",
        "Training": f"{_format_of(config)}, fit: {config.fit}",
        "Read": f"{counted(count, 'image')} in {seconds:.2f} s: {count / seconds:,.0f} images/s",
    }
    log("\n".join(f"{name:<10} {text}" for name, text in facts.items()))


def _print_classes(splits: "Mapping[str, Records]") -> None:
    names = splits["train"].class_names
    if not names:
        return
    table = new_table(["class", *splits])
    counts = [records.labels.bincount(minlength=len(names)).tolist() for records in splits.values()]
    for label, name in list(enumerate(names))[:_MOST_CLASSES]:
        table.add_row(name, *(f"{column[label]:,}" for column in counts))
    log("")
    print_table(table)
    if len(names) > _MOST_CLASSES:
        log(f"and {len(names) - _MOST_CLASSES:,} classes more")
