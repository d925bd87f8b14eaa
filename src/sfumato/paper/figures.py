"""The figures of the paper's experiments from a run folder: a new one is a function and an entry.

All figures have the same captions and seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.errors import InputError
from sfumato.base.files import folder_for, write_bytes, write_text
from sfumato.data.records import Records, load_records
from sfumato.generation.model import Model
from sfumato.generation.samples import Samples
from sfumato.report.grids import class_grid, labelled_grid
from sfumato.report.page import data_url, loss_curve, rendered
from sfumato.text.encoder import NULL
from sfumato.training.records import read_records

if TYPE_CHECKING:
    from sfumato.diffusion.sampling import Step

SEED = 422
"""The paper's."""
GUIDED = 5.0
TABLE_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
TEXT_SCALES = (0.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_MOMENTS = 10
_ROWS = 4
_SAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What figures are made from: a run's model, its training images, the first seed."""

    model: Model
    folder: Path
    training: Records
    seed: int = SEED

    @property
    def captions(self) -> Sequence[str]:
        return self.training.examples()[0]

    @property
    def labels(self) -> Sequence[str]:
        return self.training.examples()[1]

    def rows(self, prompts: Sequence[Sequence[str]], *, scale: float) -> list[Samples]:
        """Samples of each row of prompts; every image has a seed of its own."""
        width = len(prompts[0])
        firsts = range(self.seed, self.seed + width * len(prompts), width)
        return [
            self.model.sample(row, range(first, first + width), guidance=scale)
            for row, first in zip(prompts, firsts, strict=True)
        ]


def grid_of(samples: Sequence[Samples], rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """A PNG of rows of samples with their labels; `columns`: the labels above."""
    return labelled_grid(
        [images.tensor for images in samples],
        row_labels=rows,
        column_labels=columns,
        settings=[settings for images in samples for settings in images.settings],
    )


def _denoising(sources: Sources) -> bytes:
    """Three captions, from noise (left) to image (right): x_t at ten of the sampler's steps."""
    captions, labels = sources.captions[:3], sources.labels[:3]
    steps: list[Step] = []
    seeds = range(sources.seed, sources.seed + len(captions))
    sources.model.sample(captions, seeds, guidance=GUIDED, on_step=steps.append)
    places = sorted({round(i * (len(steps) - 1) / (_MOMENTS - 1)) for i in range(_MOMENTS)})
    decode = sources.model.codec.decode
    return labelled_grid(
        [[decode(steps[place].x_t[row]) for place in places] for row in range(len(captions))],
        row_labels=labels,
        column_labels=[f"step {steps[place].index + 1}" for place in places],
        settings=[{"w": GUIDED}],
    )


def _all_classes(scale: float) -> Callable[[Sources], bytes]:
    """Every caption in each of four rows."""
    return lambda sources: grid_of(
        sources.rows([sources.captions] * _ROWS, scale=scale), [""] * _ROWS, sources.labels
    )


def _class_rows(scale: float) -> Callable[[Sources], bytes]:
    """A row of samples for each class; the seeds are the same at any scale."""
    return lambda sources: grid_of(
        sources.rows([[caption] * _SAMPLES for caption in sources.captions], scale=scale),
        sources.labels if scale else [""] * len(sources.labels),
        [f"w = {scale:g}", *[""] * (_SAMPLES - 1)],
    )


def _training_samples(sources: Sources) -> bytes:
    return class_grid(sources.training, title=sources.training.description)


def _empty_prompts(sources: Sources) -> bytes:
    count = len(sources.captions)
    return grid_of(sources.rows([[NULL] * count] * _ROWS, scale=GUIDED), [""] * _ROWS, [""] * count)


def _loss(sources: Sources) -> bytes:
    records = read_records(sources.folder / "metrics.jsonl")
    if not records:
        raise InputError(
            f"{sources.folder} has no metrics.jsonl to draw a curve from.",
            hint="Train a run with `sfumato train`.",
        )
    return loss_curve(records)


def _by_scale(scales: Sequence[float]) -> Callable[[Sources], bytes]:
    """Captions as rows, scales as columns; one seed a row."""

    def make(sources: Sources) -> bytes:
        seeds = range(sources.seed, sources.seed + len(sources.captions))
        columns = [sources.model.sample(sources.captions, seeds, guidance=w) for w in scales]
        return labelled_grid(
            [list(row) for row in zip(*(images.tensor for images in columns), strict=True)],
            row_labels=sources.labels,
            column_labels=[f"w = {scale:g}" for scale in scales],
            settings=[settings for images in columns for settings in images.settings],
        )

    return make


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """One figure: its title, and the function that makes its PNG."""

    title: str
    make: Callable[[Sources], bytes]


MNIST: dict[str, FigureEntry] = {
    "1-denoising": FigureEntry(
        title="Figure 1: from noise to image, w = 5, x_t at ten steps", make=_denoising
    ),
    "2-guided": FigureEntry(
        title="Figure 2: every class at w = 5; each row has seeds of its own",
        make=_all_classes(GUIDED),
    ),
    "3-training": FigureEntry(
        title="Figure 3: training images with their classes", make=_training_samples
    ),
    "4-unguided": FigureEntry(
        title="Figure 4: every class without guidance (w = 1), the seeds of figure 2",
        make=_all_classes(1.0),
    ),
    "5-empty-prompts": FigureEntry(
        title="Figure 5: empty prompts at w = 5, the seeds of figure 2. Both branches are then the "
        "same, so that w changes nothing: these are the images of w = 0",
        make=_empty_prompts,
    ),
    "6-loss": FigureEntry(title="Figure 6: training loss", make=_loss),
    "7-scales": FigureEntry(
        title="Figure 7: classes (rows) by guidance scale (columns), one seed a row",
        make=_by_scale(TABLE_SCALES),
    ),
    "7-scales-of-the-text": FigureEntry(
        title="Figure 7 with the scales of the paper's text", make=_by_scale(TEXT_SCALES)
    ),
}

CIFAR10: dict[str, FigureEntry] = {
    "8-training": FigureEntry(
        title="Figure 8: training images with their classes", make=_training_samples
    ),
    **{
        f"{number}-w{scale:g}": FigureEntry(
            title=f"Figure {number}: ten samples of each class (rows) at w = {scale:g}"
            + (", unconditional: every row draws from all classes" if scale == 0 else "")
            + ("; the seeds are those of figure 9" if scale else ""),
            make=_class_rows(scale),
        )
        for number, scale in ((9, 0.0), (10, 2.0), (11, 5.0), (12, 10.0))
    },
    "13-examples": FigureEntry(
        title="Figure 13: every class at w = 5; each row has seeds of its own",
        make=_all_classes(GUIDED),
    ),
    "loss": FigureEntry(title="Training loss", make=_loss),
}

EXPERIMENTS: dict[str, Mapping[str, FigureEntry]] = {"mnist": MNIST, "cifar10": CIFAR10}
"""The paper's experiments by their figures: section 3.2 has 1 to 7, section 3.3 has 8 to 13."""


def experiment_of(training: Records) -> str:
    """Whose figures suit images of a run: grey ones are shown as digits, colour as photos."""
    return "mnist" if training.images.shape[1] == 1 else "cifar10"


def _sources(model: Model, seed: int, like: str | None) -> Sources:
    """What figures are made of. `InputError` as `write_figures`."""
    if like is not None and like not in EXPERIMENTS:
        raise InputError(
            f"--like {like}: the paper has no figures of that name.",
            hint=f"Choose one of: {', '.join(EXPERIMENTS)}.",
        )
    if model.folder is None or model.data is None:
        raise InputError(
            "Figures need a run: an exported or bundled model has no record of its training.",
            hint="Give the folder of the run that it came from, or use `sfumato grid`.",
        )
    training = load_records(model.data, "train")
    return Sources(model=model, folder=model.folder, training=training, seed=seed)


def write_figures(
    model: Model,
    folder: Path,
    *,
    like: str | None = None,
    seed: int = SEED,
    on_figure: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Every figure of an experiment as a PNG in `folder`, and `figures.html` with all of them; the
    page's path. `like`: a key of `EXPERIMENTS`; None for `experiment_of`.

    A figure that is there, of the same weights and settings, is not made again; with others
    `folder`-2 is taken. `InputError` for a model that is not a run, or an experiment of another
    name.
    """
    sources = _sources(model, seed, like)
    shown_as = like or experiment_of(sources.training)
    settings = {"like": shown_as, "provenance": dict(model.provenance), "seed": seed}
    settings |= asdict(model.sampling)
    folder = folder_for(folder, settings)
    shown = []
    for name, figure in EXPERIMENTS[shown_as].items():
        path = folder / f"figure-{name}.png"
        if not path.exists():
            write_bytes(path, figure.make(sources))
        on_figure(path)
        shown.append((figure.title, data_url(path.read_bytes())))
    page = rendered("figures.html", figures=shown, captions=list(sources.captions), **settings)
    write_text(folder / "figures.html", page)
    return folder / "figures.html"
