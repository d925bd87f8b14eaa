"""What the commands print: progress, tables, results."""

import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.files import write_bytes
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.generation.grids import scale_grid
from sfumato.generation.model import ImageGenerator, settings_in_png
from sfumato.training.hooks import BaseHook
from sfumato.training.lint import Drawing, lint_drawing, tell
from sfumato.training.loop import Run
from sfumato.training.records import append_record

if TYPE_CHECKING:
    from sfumato.config.schema import Experiment

DEFAULT_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)


def say(text: str) -> None:
    print(text, flush=True)


def say_wrapped(text: str, *, indent: int = 0) -> None:
    """A paragraph in lines of the terminal's width, at most 100."""
    width = min(100, Console().width) - indent
    say(textwrap.indent(textwrap.fill(text, width=width, break_on_hyphens=False), " " * indent))


def print_table(table: Table) -> None:
    """Every figure whole: a narrow terminal breaks lines, not numbers."""
    whole = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, whole)).print(table)


def clock(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """On a terminal, a line while something takes seconds; it goes when that is done."""
    terminal = sys.stderr.isatty()
    if terminal:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Line:
    """One line that is rewritten on a terminal; elsewhere a new line every few seconds."""

    def __init__(self, *, every_seconds: float = 10.0) -> None:
        self._terminal = sys.stdout.isatty()
        self._every = 0.2 if self._terminal else every_seconds
        self._last = 0.0

    def show(self, text: str, *, final: bool = False) -> None:
        now = time.monotonic()
        if not final and now - self._last < self._every:
            return
        self._last = now
        if self._terminal:
            sys.stdout.write(f"\r\033[K{text}" + ("\n" if final else ""))
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()


class Progress(BaseHook):
    """Images seen, images/s, loss and time left; and the speed in timing.jsonl."""

    def __init__(self) -> None:
        self._line = Line()
        self._started: float | None = None
        self._from_images = 0
        self._loss: float | None = None
        self._recorded = 0.0

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
        now = time.monotonic()
        if self._started is None:  # the first step warms up; the clock starts after it
            self._started, self._from_images = now, run.images_seen
            return
        loss = float(metrics["loss"])
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        speed = (run.images_seen - self._from_images) / max(now - self._started, 1e-9)
        left = max(0, run.total_images - run.images_seen) / speed
        self._line.show(
            f"  {run.images_seen:>9,} of {run.total_images:,} images  {speed:6.1f} images/s  "
            f"loss {self._loss:.4f}  {clock(left)} left",
            final=run.finished,
        )
        if now - self._recorded > 10 or run.finished:
            self._recorded = now
            append_record(
                run.folder / "timing.jsonl",
                {
                    "images": run.images_seen,
                    "seconds": round(now - self._started, 3),
                    "images_per_second": round(speed, 2),
                },
            )


def train_and_report(
    experiment: "Experiment", folder: Path, *, device: str, progress: Progress
) -> Run:
    """Train (or go on), and say how it ended."""
    from sfumato.methods.registry import method_of

    method = method_of(experiment)
    run = method.run(experiment, folder, device=device, hooks=[progress], on_start=say_start)
    if run.finished:
        say(f"Finished at {run.images_seen:,} images.")
        for line in method.finished(experiment, folder):
            say(line)
    else:
        say(
            f"\nStopped at {run.images_seen:,} images, saved. The same command with "
            f"--out {folder} goes on from here."
        )
    return run


def say_start(run: Run) -> None:
    """One line before the first step: new, going on, or finished."""
    if run.finished:
        say(f"Already trained: {run.images_seen:,} images.")
    elif run.images_seen:
        say(f"Going on from the checkpoint at {run.images_seen:,} images, on {run.device}.")
    else:
        say(f"Training on {run.device}.")


def open_generator(
    model: str,
    *,
    device: str,
    scheduler: str | None = None,
    guidance: float | None = None,
    form: str | None = None,
    steps: int | None = None,
) -> ImageGenerator:
    with waiting(f"Opening {model} ..."):
        generator = ImageGenerator.open(model, device=device)
    generator.use(
        scheduler=scheduler,
        guidance_scale=guidance,
        guidance=None if form is None else GuidanceConfig.parse(form),
        steps=steps,
    )
    return generator


def tell_of_drawing(
    generator: ImageGenerator,
    *,
    scales: Sequence[float] = (),
    form: GuidanceConfig | None = None,
) -> None:
    """Warn of what the sampling rules find; without `scales` at the generator's own."""
    scales = scales or (generator.pipeline.config["guidance_scale"],)
    tell(lint_drawing(Drawing.of_generator(generator, scales, form or generator.guidance)))


def parse_forms(texts: Sequence[str] | None) -> tuple[GuidanceConfig, ...]:
    return tuple(GuidanceConfig.parse(text) for text in texts or ())


def parse_scales(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(
            f"--scales {text}: not numbers with commas.", hint="For example: --scales 0,1,2,3,5"
        ) from error


def draw_to_files(
    generator: ImageGenerator, prompts: Sequence[str], *, count: int, seed: int, out: Path
) -> None:
    if count < 1:
        raise InputError(f"--count {count} is out of range.", hint="Give 1 or more.")
    tell_of_drawing(generator)
    wanted = [(prompt, seed + index) for prompt in prompts for index in range(count)]
    for picture in generator.draw([p for p, _ in wanted], [s for _, s in wanted]):
        settings = picture.settings
        words = re.sub(r"[^\w]+", "-", settings["prompt"].lower()).strip("-")[:60] or "empty"
        form = settings["guidance"].partition(":")[0]
        how = f"w{settings['guidance_scale']:g}" + ("" if form == "cfg" else f"-{form}")
        path = unused(out / f"{words}-{how}-seed{settings['seed']}.png")
        write_bytes(path, picture.png())
        say(str(path))


def unused(path: Path) -> Path:
    """`path`, or the same with a number where it exists: nothing is overwritten."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def write_grid(
    generator: ImageGenerator,
    prompts: Sequence[str],
    *,
    scales: Sequence[float] | None,
    forms: Sequence[GuidanceConfig],
    seed: int,
    out: Path,
) -> None:
    scales = scales or DEFAULT_SCALES
    for form in forms or [generator.guidance]:
        tell_of_drawing(generator, scales=scales, form=form)
    labels: Sequence[str] = list(prompts)
    if not prompts:
        prompts, labels = generator.examples()
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: a grid is a PNG.", hint="End the name with .png.")
    path = unused(out)
    picture = scale_grid(generator, prompts, labels, scales=scales, forms=forms, first_seed=seed)
    write_bytes(path, picture)
    say(str(path))


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def check_is_empty(folder: Path) -> None:
    """`InputError` for a file or a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is there already and not empty; nothing is overwritten.",
            hint="Give --out a new folder.",
        )


def say_how_to_load(folder: Path) -> None:
    say(
        f"Written to {folder}.\n\n"
        "With sfumato:\n"
        "  from sfumato import TextToImagePipeline\n"
        f'  pipe = TextToImagePipeline.from_pretrained("{folder}")\n\n'
        "Without sfumato, by diffusers and transformers alone (it runs the folder's pipeline.py):\n"
        "  from diffusers import DiffusionPipeline\n"
        "  pipe = DiffusionPipeline.from_pretrained(\n"
        f'      "{folder}", custom_pipeline="{folder}", trust_remote_code=True\n'
        "  )\n\n"
        "Then, the same picture from either:\n"
        '  pipe("a prompt", seeds=[0]).images[0].save("picture.png")'
    )


def print_settings(file: Path) -> None:
    settings = settings_in_png(file)
    if not settings:
        raise InputError(
            f"{file} carries no settings of sfumato.",
            hint="Only PNGs that sfumato wrote do; other programs may have removed them.",
        )
    width = max(len(key) for key in settings)
    for key, value in settings.items():
        say(f"{key:<{width}}  {value}")


def print_presets() -> None:
    from sfumato.config.overrides import preset_names
    from sfumato.config.schema import load_experiment
    from sfumato.methods.registry import method_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("preset")
    table.add_column("parameters", justify="right")
    table.add_column("image")
    table.add_column("about")
    for name in preset_names():
        experiment = load_experiment(name)
        about = method_of(experiment).describe(experiment)
        table.add_row(name, about.parameters, about.images, experiment.about)
    Console().print(table)
