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
from sfumato.evaluation import MetricCard
from sfumato.experiment import Experiment
from sfumato.models.unet import parameter_count
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.tracking import read_records

SHOWN_SAMPLE_GRIDS = 4


def write_report(folder: Path, *, experiment: Experiment, card: MetricCard, grid: Path) -> Path:
    """Write `report.html` into a run folder; it needs no other file and no network."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    template = environment.from_string((files("sfumato.report") / "page.html").read_text("utf-8"))
    records = read_records(folder / "metrics.jsonl")
    timing = read_records(folder / "timing.jsonl")
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    text = template.render(
        experiment=experiment,
        card=card,
        parameters=parameter_count(
            experiment.model,
            resolution=experiment.data.resolution,
            channels=experiment.data.channels,
        ),
        example_caption=load_records(experiment.data, "test").examples()[0][-1],
        grid=_data_url(grid.read_bytes()),
        samples=[
            (int(path.stem.removeprefix("images-")), _data_url(path.read_bytes()))
            for path in _spread(sorted((folder / "samples").glob("images-*.png")))
        ],
        evaluation_grids=[
            (row.guidance_scale, _data_url(path.read_bytes()))
            for row in card.results
            if (path := folder / "evaluation" / f"samples-w{row.guidance_scale:g}.png").exists()
        ],
        loss_curve=_data_url(loss_curve(records)) if records else None,
        images_per_second=timing[-1]["images_per_second"] if timing else None,
        environment=checkpoint.state["environment"] if checkpoint else {},
        libraries=_library_versions(),
        command=shlex.join(["sfumato", *sys.argv[1:]]),
        version=__version__,
        configuration=experiment.to_yaml(),
        card_json=read_json(folder / "evaluation" / "card.json"),
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def loss_curve(records: list[dict[str, Any]]) -> bytes:
    """PNG of the training loss over images seen."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(7.2, 2.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot([r["images"] for r in records], [r["loss"] for r in records], color="#7a4b2a", lw=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("images seen")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _spread(paths: list[Path]) -> list[Path]:
    """At most `SHOWN_SAMPLE_GRIDS` of them, first and last among them."""
    if len(paths) <= SHOWN_SAMPLE_GRIDS:
        return paths
    last = len(paths) - 1
    return [paths[round(i * last / (SHOWN_SAMPLE_GRIDS - 1))] for i in range(SHOWN_SAMPLE_GRIDS)]


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _library_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        name: version(name)
        for name in ("torch", "diffusers", "transformers", "numpy", "scikit-learn", "pillow")
    }
