"""`report.html`: one self-contained page with pictures, curves, tables and how they were made."""

import base64
import io
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato.base.files import read_json, write_text
from sfumato.data.sources import load_records
from sfumato.evaluation.card import FILE_NAME
from sfumato.evaluation.measure import Evaluated
from sfumato.evaluation.subjects import file_name
from sfumato.experiment import Experiment
from sfumato.models.unet import parameter_count
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.tracking import read_records

SHOWN_SAMPLE_GRIDS = 4


def write_report(folder: Path, *, experiment: Experiment, evaluated: Evaluated, grid: Path) -> Path:
    """Write `report.html` into a run folder; it needs no other file and no network."""
    records = read_records(folder / "metrics.jsonl")
    timing = read_records(folder / "timing.jsonl")
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    text = rendered(
        "page.html",
        experiment=experiment,
        card=evaluated.card,
        parameters=parameter_count(
            experiment.model,
            resolution=experiment.data.resolution,
            channels=experiment.data.channels,
        ),
        example_caption=load_records(experiment.data, "test").examples()[0][-1],
        grid=data_url(grid.read_bytes()),
        samples=[
            (int(path.stem.removeprefix("images-")), data_url(path.read_bytes()))
            for path in _spread(sorted((folder / "samples").glob("images-*.png")))
        ],
        evaluation_grids=_pictures(evaluated, "samples"),
        nearest=_pictures(evaluated, "nearest"),
        loss_curve=data_url(loss_curve(records)) if records else None,
        images_per_second=timing[-1]["images_per_second"] if timing else None,
        environment=checkpoint.state["environment"] if checkpoint else {},
        libraries=_library_versions(),
        command=shlex.join(["sfumato", *sys.argv[1:]]),
        configuration=experiment.to_yaml(),
        card_json=read_json(evaluated.folder / FILE_NAME),
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def loss_curve(records: list[dict[str, Any]]) -> bytes:
    """PNG of the training loss over images seen."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure = Figure(figsize=(7.2, 2.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [record["images"] for record in records],
        [record["loss"] for record in records],
        color="#7a4b2a",
        lw=1.4,
        marker="o" if len(records) == 1 else "",  # one point has no line
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))  # labels of all nine would touch
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("images seen")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _pictures(evaluated: Evaluated, kind: str) -> list[tuple[str, str]]:
    """The title of each row that has such a picture, and the picture."""
    return [
        (row.title, data_url(path.read_bytes()))
        for row in evaluated.card.rows
        if (path := evaluated.folder / f"{kind}-{file_name(row.title)}.png").exists()
    ]


def _spread(paths: list[Path]) -> list[Path]:
    """At most `SHOWN_SAMPLE_GRIDS` of them, first and last among them."""
    if len(paths) <= SHOWN_SAMPLE_GRIDS:
        return paths
    last = len(paths) - 1
    return [paths[round(i * last / (SHOWN_SAMPLE_GRIDS - 1))] for i in range(SHOWN_SAMPLE_GRIDS)]


def rendered(template: str, **values: Any) -> str:
    """A page of this room with its style inside; it needs no other file and no network."""
    import jinja2
    import markupsafe

    room = files("sfumato.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    page = environment.from_string((room / template).read_text("utf-8"))
    style = markupsafe.Markup((room / "style.css").read_text("utf-8"))
    return page.render(style=style, version=__version__, **values)


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _library_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        name: version(name)
        for name in ("torch", "diffusers", "transformers", "numpy", "scikit-learn", "pillow")
    }
