"""What `sfumato evaluate` prints: progress, tables with intervals and floors, notes."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from rich.table import Table

from sfumato.base.errors import InputError
from sfumato.base.section import Section
from sfumato.cli.show import (
    Line,
    clock,
    open_generator,
    parse_scales,
    percent,
    print_table,
    say,
    say_wrapped,
    tell_of_drawing,
    unused,
)
from sfumato.config.overrides import build
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig, EvaluationConfig, SamplingConfig
from sfumato.diffusion.solvers.schedulers import sampler_of
from sfumato.evaluation.card import (
    FILE_NAME,
    ExtractorInfo,
    FeatureFigures,
    FeatureFloor,
    Figure,
    MetricCard,
    RowFigures,
    Spread,
    read_card,
)
from sfumato.evaluation.compare import MEANINGS, Comparison, Side, compare
from sfumato.evaluation.comparison_page import write_comparison
from sfumato.evaluation.measure import Evaluated, evaluate
from sfumato.evaluation.pictures import write_pictures
from sfumato.evaluation.target import Target, files_target, is_model, model_target
from sfumato.generation.bundle_names import beside, model_folder
from sfumato.generation.model import ImageGenerator


class Measured(Section):
    """The settings that `sfumato evaluate --set` can change."""

    example: ClassVar = "digits"
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def evaluate_and_print(
    what: Path,
    *,
    settings: Sequence[str],
    form: str | None,
    seed: int,
    held_out: bool,
    out: Path | None,
    device: str,
) -> None:
    """Open what is given, measure it, write pictures, print the tables."""
    if is_model(what):
        evaluated = evaluate_model(
            what,
            settings=settings,
            form=form,
            seed=seed,
            held_out=held_out,
            out=out,
            device=device,
        )
    else:
        measured = build(Measured, {}, settings, source="sfumato evaluate")
        evaluated = evaluate(
            images_target(what, measured.data),
            measured.evaluation,
            base=out or what.with_name(f"{what.stem}-evaluation"),
            say=say,
            on_images=ImagesLine(),
        )
        write_pictures(evaluated)
    if evaluated.found:
        say(f"Measured before, {evaluated.card.date}; --out FOLDER measures again.")
    print_card(evaluated.card)
    for pictures in ("samples", "nearest"):
        if any(evaluated.folder.glob(f"{pictures}-*.png")):
            say(f"{pictures.capitalize():<8}{evaluated.folder / f'{pictures}-*.png'}")
    say(f"Card    {evaluated.folder / FILE_NAME}")


def evaluate_model(
    model: Path,
    *,
    settings: Sequence[str],
    form: str | None,
    seed: int,
    held_out: bool,
    out: Path | None,
    device: str,
    scale: float | None = None,
) -> Evaluated:
    """Draw and measure; at `scale` alone where it is given."""
    target, config, where = model_to_measure(
        model,
        settings=settings,
        form=form,
        seed=seed,
        held_out=held_out,
        device=device,
        scale=scale,
    )
    evaluated = evaluate(
        target,
        config,
        base=out or beside(model, "evaluation-held-out" if held_out else "evaluation"),
        device=where,
        say=say,
        on_images=ImagesLine(),
    )
    write_pictures(evaluated)
    return evaluated


def model_to_measure(
    model: Path,
    *,
    settings: Sequence[str],
    form: str | None,
    seed: int,
    held_out: bool,
    device: str,
    scale: float | None = None,
) -> tuple[Target, EvaluationConfig, torch.device]:
    """What will be drawn, how it is measured, and where; at `scale` alone where it is given."""
    generator = open_generator(str(model), device=device, form=form)
    measured = model_settings(generator, model, settings)
    generator.data = measured.data if generator.data is not None else None
    generator.use(
        scheduler=measured.sampling.scheduler,
        timestep_spacing=measured.sampling.timestep_spacing,
        steps=measured.sampling.steps,
        guidance=measured.sampling.guidance,
    )
    config = measured.evaluation
    if scale is not None:
        config = config.model_copy(update={"guidance_scales": (scale,)})
    tell_of_drawing(generator, scales=config.guidance_scales)
    target = model_target(generator, model, config, first_seed=seed, held_out=held_out)
    return target, config, generator.pipeline.device


def model_settings(generator: ImageGenerator, model: Path, settings: Sequence[str]) -> Measured:
    """The model's own data and evaluation settings, with `--set` on top; says so where the real
    images are of another source than the model names, for nothing else would tell."""
    config = generator.pipeline.config
    values: dict[str, object] = {
        "sampling": {
            "scheduler": sampler_of(generator.pipeline.scheduler)[0],
            "timestep_spacing": generator.pipeline.scheduler.config["timestep_spacing"],
            "steps": config["num_inference_steps"],
            "guidance_scale": config["guidance_scale"],
            "guidance": config["guidance"],
        }
    }
    if generator.data is not None:
        values["data"] = generator.data.model_dump(mode="json")
    file = model / "experiment.yaml"
    if file.exists():
        values["evaluation"] = load_experiment(str(file)).evaluation.model_dump(mode="json")
    measured = build(Measured, values, settings, source=str(model))
    if generator.data is not None and measured.data.source != generator.data.source:
        say_wrapped(
            f"Real images of {measured.data.source}; the model was trained on "
            f"{generator.data.source}. Figures hold only if that is the same data set."
        )
    return measured


def use_data(generator: ImageGenerator, model: Path, data: str | None) -> None:
    """Let `generator` be held against the real images of the source `data`, where it is given."""
    if data is not None:
        settings = [f"data.source={json.dumps(data)}"]
        generator.data = model_settings(generator, model, settings).data


def images_target(what: Path, data: DataConfig) -> Target:
    """A folder or an .npz file; `InputError` where no real images are named."""
    if what.exists() and not data.source:
        raise InputError(
            f"{what} does not say which real images it is to be measured against.",
            hint="Name them: --data FOLDER, --data OWNER/NAME or --data digits.",
        )
    return files_target(what, data)


def overrides(
    settings: Sequence[str] | None,
    *,
    count: int | None,
    scales: str | None,
    data: str | None,
    untrained: bool,
) -> list[str]:
    """The options that are short for `--set`, then what was set."""
    chosen = {
        "evaluation.count": count,
        "evaluation.guidance_scales": parse_scales(scales),
        "data.source": data,
        "evaluation.classifier": "untrained" if untrained else None,
    }
    named = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    return [*named, *(settings or [])]


class ImagesLine:
    """How many images are done of what is being done, and the time left."""

    def __init__(self) -> None:
        self._line = Line()
        self._started: dict[str, tuple[float, int]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        started, before = self._started.setdefault(what, (now, done))
        left = ""
        if done > before:
            left = f"  {clock((now - started) / (done - before) * (total - done))} left"
        self._line.show(f"  {done:,} of {total:,} {what}{left}", final=done == total)


class CallsLine:
    """How many network calls are done of all that there are to do, and the time left."""

    def __init__(self) -> None:
        self._line = ImagesLine()

    def __call__(self, done: int, total: int) -> None:
        self._line("network calls", done, total)


# Comparing ----------------------------------------------------------------------------------------


def compare_and_print(
    names: tuple[str, str],
    *,
    settings: Sequence[str],
    guidance: float | None,
    seed: int,
    held_out: bool,
    out: Path,
    device: str,
) -> None:
    """Evaluate both where they are models, test what differs, write one page."""
    given = [_path_and_scale(name) for name in names]
    for path, _ in given:
        model_folder(path)  # a name that is not known is said before the other one is drawn
        if not (path / FILE_NAME).is_file() and not is_model(path):
            raise InputError(
                f"{path} is neither a model nor an evaluation"
                + ("." if path.exists() else ": it does not exist."),
                hint="Give runs, pipelines or folders with a card.json; PATH@3 names w = 3.",
            )
    sides = []
    for path, its_scale in given:
        scale = guidance if its_scale is None else its_scale
        if (path / FILE_NAME).is_file():
            folder, title = path, _row_title(path, scale)
        else:
            if scale is None:
                scale = ImageGenerator.open(path, device="cpu").pipeline.config["guidance_scale"]
            say(f"{path}, w = {scale:g}:")
            folder = evaluate_model(
                path,
                settings=settings,
                form=None,
                seed=seed,
                held_out=held_out,
                out=None,
                device=device,
                scale=scale,
            ).folder
            title = f"w = {scale:g}"
        sides.append(Side.open(folder, title, name=_short_name(path)))
    first, second = sides
    found = compare(first, second)
    folder = unused(out)
    page = write_comparison(folder, found, first, second)
    print_comparison(found)
    say(f"Pairs   {folder / 'pairs.png'}\nPage    {page}")


def _path_and_scale(name: str) -> tuple[Path, float | None]:
    """`PATH@3` is the path and w = 3."""
    path, at, scale = name.rpartition("@")
    if not at or Path(name).exists():
        return Path(name), None
    try:
        return Path(path), float(scale)
    except ValueError as error:
        raise InputError(
            f"{name}: '{scale}' is no guidance scale.", hint="For example: runs/demo@3"
        ) from error


def _row_title(folder: Path, scale: float | None) -> str:
    titles = [row.title for row in read_card(folder).rows]
    if scale is not None:
        return f"w = {scale:g}"
    if len(titles) > 1:
        raise InputError(
            f"{folder} has several rows: {', '.join(titles)}.",
            hint=f"Name one: {folder}@3 for w = 3, or --guidance 3 for both.",
        )
    return titles[0]


def _short_name(path: Path) -> str:
    """A run's name, for an evaluation inside it as well."""
    resolved = path.resolve()
    inside = (resolved / FILE_NAME).is_file() and is_model(resolved.parent)
    return f"{resolved.parent.name}/{resolved.name}" if inside else resolved.name


def print_comparison(found: Comparison) -> None:
    """The table of what differs."""
    names = [f"{one['name']}, {one['row']}" for one in (found.first, found.second)]
    if found.first["row"] == found.second["row"]:
        names = [found.first["name"], found.second["name"]]
    elif found.first["name"] == found.second["name"]:
        names = [found.first["row"], found.second["row"]]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in (*names, "real", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("better", no_wrap=True)
    if found.agreement is not None:
        pair = found.agreement
        better = names[0] if pair.only_first > pair.only_second else names[1]
        table.add_row(
            "agreement",
            percent(pair.first),
            percent(pair.second),
            "",
            f"{pair.only_first} to {pair.only_second}, p = {pair.p_value:.2g}",
            better if pair.p_value < 0.05 else "",
        )
    for one in found.differences:
        where = f" ({one.extractor})" if one.extractor else ""
        table.add_row(
            MEANINGS[one.name] + where,
            f"{one.first:.3g}",
            f"{one.second:.3g}",
            "" if one.real is None else f"{one.real:.3g}",
            f"{one.difference:+.2g} ({one.low:.2g}, {one.high:.2g})",
            {"first": names[0], "second": names[1]}.get(one.better, ""),
        )
    print_table(table)
    say_wrapped(
        f"{found.count:,} pairs of the same seed and caption; agreement by McNemar's exact test "
        "over the images that only one got right, "
        "the rest by a paired bootstrap, in brackets 95 % intervals. Nearest real: an image's "
        "distance to the nearest real one; diversity: the distance of two images of a class. "
        "Difference: first less second. "
        "Diversity and saturation are read beside real images."
    )


# Tables -------------------------------------------------------------------------------------------


def print_card(card: MetricCard) -> None:
    """The tables of an evaluation, with the floor of real images in each."""
    print_table(_first_table(card))
    for info in card.measured:
        print()
        say_wrapped(f"{info.title}: {info.dim} features of {info.name}")
        print_table(_features_table(card, info))
    print()
    missing = [info.title for info in card.extractors if info.missing]
    if missing:
        say_wrapped(
            f"Not measured, since the weights are not at hand: {', '.join(missing)}. With a "
            "network --set evaluation.features.may_download=true fetches them; docs/evaluation.md "
            "says how to bring the files."
        )
    say_wrapped(_legend(card))
    worth = {row.title: row.untrained for row in card.rows} | {"real": card.real.untrained}
    for title, found in worth.items():
        if found is not None:
            say_wrapped(
                f"Untrained judges on {title}: right in {percent(found.mean)} on average of 20, "
                f"from {percent(found.lowest)} to {percent(found.highest)}; chance is "
                f"{percent(found.chance)}."
            )
    notes = dict.fromkeys(note for row in card.rows for note in row.notes)
    for note in (*card.warnings, *notes):
        say_wrapped(f"note: {note}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Right-aligned columns; those that are empty in all rows are left out."""
    kept = [
        place
        for place, name in enumerate(columns)
        if not name or any(row[place] not in ("", "-") for row in rows)
    ]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for place in kept:
        table.add_column(columns[place], justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[place] for place in kept))
    return table


def _first_table(card: MetricCard) -> Table:
    """Agreement, CLIP score, saturation, copies: what is said of the images by themselves."""
    captions = list(card.real.clip_score)
    columns = ["", "agreement", "95 % interval", *(f"CLIP ({key})" for key in captions)]
    columns += ["saturated", "copies", "calls"]
    rows = [
        [
            _short(row.title),
            *_agreement(row.agreement),
            *(_plus_minus(row.clip_score.get(key), 2) for key in captions),
            percent(row.saturated),
            f"{_plus_minus(row.memorised.share, 0, 100)} %" if row.memorised else "",
            str(row.calls or ""),
        ]
        for row in card.rows
    ]
    quantile = next((row.memorised.quantile for row in card.rows if row.memorised), None)
    rows.append(
        [
            "real",
            *_agreement(card.real.agreement),
            *(_plus_minus(card.real.clip_score[key], 2) for key in captions),
            percent(card.real.saturated),
            f"{100 * quantile:.0f} %" if quantile else "",
            "",
        ]
    )
    return _table(columns, rows)


def _features_table(card: MetricCard, info: ExtractorInfo) -> Table:
    columns = ["", "Frechet", "1000 KID", "precision", "recall", "density", "coverage"]
    columns += ["N to inf", "IS"]

    def cells(figures: FeatureFigures | FeatureFloor) -> list[str]:
        return [
            _plus_minus(figures.frechet, 3),
            _plus_minus(figures.kernel, 2, 1000),
            _plus_minus(figures.precision, 0, 100),
            _plus_minus(figures.recall, 0, 100),
            _plus_minus(figures.density, 2, alone=True),
            _plus_minus(figures.coverage, 0, 100, alone=True),
        ]

    def score(row: RowFigures) -> str:
        found = row.inception_score.get(info.key)
        return f"{found.value:.2f}" if found else ""

    rows = [
        [
            _short(row.title),
            *cells(row.features[info.key]),
            _plus_minus(row.features[info.key].frechet_infinity, 3, alone=True),
            score(row),
        ]
        for row in card.rows
    ]
    if info.key in card.floors:
        rows.append(["real", *cells(card.floors[info.key]), "", score(card.real)])
    rows += [
        [one.title, f"{one.frechet:.{_digits(one.frechet, 3)}f}", *[""] * 7]
        for one in card.yardsticks.get(info.key, [])
    ]
    return _table(columns, rows)


def _short(title: str, most: int = 12) -> str:
    return title if len(title) <= most else title[: most - 1] + "…"


def _agreement(found: Figure | None) -> tuple[str, str]:
    if found is None or found.low is None or found.high is None:
        return "", ""
    return percent(found.value), f"{percent(found.low)} - {percent(found.high)}"


def _plus_minus(
    found: Figure | Spread | None, digits: int, factor: float = 1, *, alone: bool = False
) -> str:
    """A figure with half of its interval, or a mean with its deviation; `alone`: without them."""
    if found is None:
        return "-"
    if isinstance(found, Spread):
        value, half = found.mean, found.std
    else:
        value = found.value
        half = None if found.low is None or found.high is None else (found.high - found.low) / 2
    value, digits = factor * value, _digits(factor * value, digits)
    text = f"{value:.{digits}f}"
    return text if alone or half is None else f"{text} ± {factor * half:.{digits}f}"


def _digits(value: float, most: int) -> int:
    """Digits after the point: three that count are enough, two are needed."""
    if value and abs(value) < 10.0**-most:
        return 1 - math.floor(math.log10(abs(value)))
    return max(0, most - max(0, len(str(int(abs(value)))) - 1))


def _legend(card: MetricCard) -> str:
    first = card.rows[0]
    how = ""
    if "seeds" in first.settings:
        seeds = first.settings["seeds"]
        how = (
            f", seeds {seeds[0]}-{seeds[1]}, {first.settings['scheduler']}, "
            f"{first.settings['steps']} steps, guidance {first.settings['guidance']}"
        )
    asked = f"; captions: {' | '.join(card.subject.captions)}" if card.subject.captions else ""
    floor = next(iter(card.floors.values()), None)
    real = "; the row 'real' is of real images"
    if floor is not None:
        apart = {
            "both": "disjoint pairs",
            "sets": "disjoint sets of real training images against the same reference",
            "none": "sets drawn again from few real training images, so that ± is a lower bound",
        }[floor.disjoint]
        turns = ", as many of each class" if floor.balanced else ""
        real += f": {floor.pairs} {apart}, {floor.count:,} images each{turns}, mean ± deviation"
    yardsticks = next(iter(card.yardsticks.values()), [])
    if yardsticks:
        real += (
            f". Yardsticks: {yardsticks[0].count:,} "
            + ("reference images" if yardsticks[0].of_reference else "other real test images")
            + " as they are and altered a little"
        )
    return (
        f"{first.count:,} images a row{how}{asked}; against {card.reference.count:,} real images: "
        f"{card.reference.description}. ± is half of a 95 % interval{real}. Precision, recall and "
        "coverage in per cent; copies: as close to a training image as the closest twentieth of "
        "real test images."
    )
