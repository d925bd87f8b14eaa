"""`report.html` of a run: pictures, curves, tables and how they were made."""

from pathlib import Path
from typing import Any

from sfumato.base.environment import command
from sfumato.base.files import read_json, write_text
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.records import load_records
from sfumato.evaluation.card import FILE_NAME, Card
from sfumato.evaluation.store import file_name
from sfumato.evaluation.tables import card_tables, notes_of
from sfumato.models.sizes import parameter_count
from sfumato.report.page import data_url, loss_curve, rendered
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.records import read_records, sample_grids

SHOWN_SAMPLE_GRIDS = 4


def write_report(folder: Path, *, experiment: DiffusionExperiment, card: Card, grid: Path) -> Path:
    """Write `report.html` into a run folder; it needs no other file and no network."""
    assert card.folder is not None
    records = read_records(folder / "metrics.jsonl")
    timing = read_records(folder / "timing.jsonl")
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    text = rendered(
        "page.html",
        experiment=experiment,
        card=card,
        tables=card_tables(card),
        notes=notes_of(card),
        parameters=parameter_count(experiment),
        example_caption=load_records(experiment.data, "test").examples()[0][-1],
        grid=data_url(grid.read_bytes()),
        samples=[
            (images_seen, data_url(path.read_bytes()))
            for images_seen, path in _spread(sample_grids(folder))
        ],
        evaluation_grids=_pictures(card, "samples"),
        nearest=_pictures(card, "nearest"),
        loss_curve=data_url(loss_curve(records)) if records else None,
        images_per_second=timing[-1]["images_per_second"] if timing else None,
        environment=checkpoint.state["environment"] if checkpoint else {},
        libraries=_library_versions(),
        command=command(),
        configuration=experiment.to_yaml(),
        card_json=read_json(card.folder / FILE_NAME),
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def _pictures(card: Card, kind: str) -> list[tuple[str, str]]:
    """The title of each row that has such a picture, and the picture."""
    assert card.folder is not None
    return [
        (row.title, data_url(path.read_bytes()))
        for row in card.rows
        if (path := card.folder / f"{kind}-{file_name(row.title)}.png").exists()
    ]


def _spread(paths: list[Any]) -> list[Any]:
    """At most `SHOWN_SAMPLE_GRIDS` of them, first and last among them."""
    if len(paths) <= SHOWN_SAMPLE_GRIDS:
        return paths
    last = len(paths) - 1
    return [paths[round(i * last / (SHOWN_SAMPLE_GRIDS - 1))] for i in range(SHOWN_SAMPLE_GRIDS)]


def _library_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        name: version(name)
        for name in ("torch", "diffusers", "transformers", "numpy", "scikit-learn", "pillow")
    }
