"""The figures of the paper's experiments from a run folder: a new one is a function and an entry.

Captions and seeds are the same in all that are drawn, so that figures can be held side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.errors import InputError
from sfumato.base.files import folder_for, write_bytes, write_text
from sfumato.base.images import to_uint8
from sfumato.data.records import Records, load_records
from sfumato.diffusion.solvers.schedulers import sampler_of
from sfumato.generation.model import ImageGenerator, Picture
from sfumato.generation.pipeline import generators_from_seeds
from sfumato.report.grids import labelled_grid
from sfumato.report.page import data_url, loss_curve, rendered
from sfumato.report.samples import class_grid
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
    """What figures are drawn from: the run's model, its training images, its record."""

    generator: ImageGenerator
    run_folder: Path
    training: Records
    seed: int = SEED

    @property
    def captions(self) -> Sequence[str]:
        return self.training.examples()[0]

    @property
    def labels(self) -> Sequence[str]:
        return self.training.examples()[1]

    def rows(
        self, prompts: Sequence[str], *, scale: float, rows: int = _ROWS
    ) -> list[list[Picture]]:
        """`rows` rows of pictures of `prompts`, each row with seeds of its own."""
        return [
            list(
                self.generator.draw(
                    prompts,
                    range(self.seed + row * len(prompts), self.seed + (row + 1) * len(prompts)),
                    guidance_scale=scale,
                )
            )
            for row in range(rows)
        ]


def _denoising(sources: Sources) -> bytes:
    """Three captions, from noise (left) to image (right): x_t at ten of the sampler's steps."""
    generator = sources.generator
    captions, labels = sources.captions[:3], sources.labels[:3]
    low, high = generator.pipeline.config["value_range"]
    steps: list[Step] = []
    generator.pipeline.sample(
        captions,
        generators=generators_from_seeds(range(sources.seed, sources.seed + len(captions))),
        guidance_scale=GUIDED,
        on_step=steps.append,
    )
    places = sorted({round(i * (len(steps) - 1) / (_MOMENTS - 1)) for i in range(_MOMENTS)})
    shown = [steps[place] for place in places]
    return labelled_grid(
        [
            [
                Picture(image=to_uint8(step.x_t[row], (low, high)).cpu(), settings={"w": GUIDED})
                for step in shown
            ]
            for row in range(len(captions))
        ],
        row_labels=labels,
        column_labels=[f"step {step.index + 1}" for step in shown],
    )


def _all_classes(scale: float) -> Callable[[Sources], bytes]:
    def draw(sources: Sources) -> bytes:
        return labelled_grid(
            sources.rows(sources.captions, scale=scale),
            row_labels=[""] * _ROWS,
            column_labels=sources.labels,
        )

    return draw


def _class_rows(scale: float) -> Callable[[Sources], bytes]:
    """A row of samples for each class; every image has a seed of its own, the same at any scale."""

    def draw(sources: Sources) -> bytes:
        return labelled_grid(
            [
                list(
                    sources.generator.draw(
                        [caption] * _SAMPLES,
                        range(sources.seed + row * _SAMPLES, sources.seed + (row + 1) * _SAMPLES),
                        guidance_scale=scale,
                    )
                )
                for row, caption in enumerate(sources.captions)
            ],
            row_labels=sources.labels if scale else [""] * len(sources.labels),
            column_labels=[f"w = {scale:g}", *[""] * (_SAMPLES - 1)],
        )

    return draw


def _training_samples(sources: Sources) -> bytes:
    return class_grid(sources.training, title=sources.training.description)


def _empty_prompts(sources: Sources) -> bytes:
    count = len(sources.captions)
    return labelled_grid(
        sources.rows([NULL] * count, scale=GUIDED),
        row_labels=[""] * _ROWS,
        column_labels=[""] * count,
    )


def _loss(sources: Sources) -> bytes:
    records = read_records(sources.run_folder / "metrics.jsonl")
    if not records:
        raise InputError(
            f"{sources.run_folder} has no metrics.jsonl to draw a curve from.",
            hint="Train a run with `sfumato train`.",
        )
    return loss_curve(records)


def _by_scale(scales: Sequence[float]) -> Callable[[Sources], bytes]:
    def draw(sources: Sources) -> bytes:
        seeds = range(sources.seed, sources.seed + len(sources.captions))
        columns = [
            list(sources.generator.draw(sources.captions, seeds, guidance_scale=scale))
            for scale in scales
        ]
        return labelled_grid(
            [list(row) for row in zip(*columns, strict=True)],
            row_labels=sources.labels,
            column_labels=[f"w = {scale:g}" for scale in scales],
        )

    return draw


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """One figure: its title, and the PNG it draws."""

    title: str
    draw: Callable[[Sources], bytes]


MNIST: dict[str, FigureEntry] = {
    "1-denoising": FigureEntry(
        title="Figure 1: from noise to image, w = 5, x_t at ten steps", draw=_denoising
    ),
    "2-guided": FigureEntry(
        title="Figure 2: every class at w = 5; each row has seeds of its own",
        draw=_all_classes(GUIDED),
    ),
    "3-training": FigureEntry(
        title="Figure 3: training images with their classes", draw=_training_samples
    ),
    "4-unguided": FigureEntry(
        title="Figure 4: every class without guidance (w = 1), the seeds of figure 2",
        draw=_all_classes(1.0),
    ),
    "5-empty-prompts": FigureEntry(
        title="Figure 5: empty prompts at w = 5, the seeds of figure 2. Both branches are then the "
        "same, so that w changes nothing: these are the images of w = 0",
        draw=_empty_prompts,
    ),
    "6-loss": FigureEntry(title="Figure 6: training loss", draw=_loss),
    "7-scales": FigureEntry(
        title="Figure 7: classes (rows) by guidance scale (columns), one seed a row",
        draw=_by_scale(TABLE_SCALES),
    ),
    "7-scales-of-the-text": FigureEntry(
        title="Figure 7 with the scales of the paper's text", draw=_by_scale(TEXT_SCALES)
    ),
}

CIFAR10: dict[str, FigureEntry] = {
    "8-training": FigureEntry(
        title="Figure 8: training images with their classes", draw=_training_samples
    ),
    **{
        f"{number}-w{scale:g}": FigureEntry(
            title=f"Figure {number}: ten samples of each class (rows) at w = {scale:g}"
            + (", unconditional: every row draws from all classes" if scale == 0 else "")
            + ("; the seeds are those of figure 9" if scale else ""),
            draw=_class_rows(scale),
        )
        for number, scale in ((9, 0.0), (10, 2.0), (11, 5.0), (12, 10.0))
    },
    "13-examples": FigureEntry(
        title="Figure 13: every class at w = 5; each row has seeds of its own",
        draw=_all_classes(GUIDED),
    ),
    "loss": FigureEntry(title="Training loss", draw=_loss),
}

EXPERIMENTS: dict[str, Mapping[str, FigureEntry]] = {"mnist": MNIST, "cifar10": CIFAR10}
"""The paper's experiments by their figures: section 3.2 has 1 to 7, section 3.3 has 8 to 13."""


def experiment_of(training: Records) -> str:
    """Whose figures suit images of a run: grey ones are shown as digits, colour as photos."""
    return "mnist" if training.images.shape[1] == 1 else "cifar10"


def write_figures(
    generator: ImageGenerator,
    folder: Path,
    *,
    like: str | None = None,
    seed: int = SEED,
    on_figure: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Every figure of an experiment as a PNG in `folder`, and `figures.html` with all of them; the
    page's path. `like`: a key of `EXPERIMENTS`; None for `experiment_of`.

    A figure that is there, of the same weights and settings, is not drawn again; with others
    `folder`-2 is taken. `InputError` for a model that is not a run, or an experiment of another
    name.
    """
    if like is not None and like not in EXPERIMENTS:
        raise InputError(
            f"--like {like}: the paper has no figures of that name.",
            hint=f"Choose one of: {', '.join(EXPERIMENTS)}.",
        )
    if generator.run_folder is None or generator.data is None:
        raise InputError(
            "Figures are drawn from a run: a pipeline or a bundled model has no record of its "
            "training.",
            hint="Give the folder of the run that it came from, or draw with `sfumato grid`.",
        )
    sources = Sources(
        generator=generator,
        run_folder=generator.run_folder,
        training=load_records(generator.data, "train"),
        seed=seed,
    )
    config = generator.pipeline.config
    shown_as = like or experiment_of(sources.training)
    settings = {
        "like": shown_as,
        "provenance": generator.provenance,
        "scheduler": sampler_of(generator.pipeline.scheduler)[0],
        "timestep_spacing": generator.pipeline.scheduler.config["timestep_spacing"],
        "steps": config["num_inference_steps"],
        "guidance": str(generator.guidance),
        "seed": seed,
    }
    folder = folder_for(folder, settings)
    shown = []
    for name, figure in EXPERIMENTS[shown_as].items():
        path = folder / f"figure-{name}.png"
        if not path.exists():
            write_bytes(path, figure.draw(sources))
        on_figure(path)
        shown.append((figure.title, data_url(path.read_bytes())))
    page = rendered("figures.html", figures=shown, captions=list(sources.captions), **settings)
    write_text(folder / "figures.html", page)
    return folder / "figures.html"
