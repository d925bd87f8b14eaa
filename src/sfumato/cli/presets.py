"""`sfumato presets`: list, show, settings."""

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from sfumato.base.terminal import plain_console
from sfumato.cli.options import Preset, Settings, register

if TYPE_CHECKING:
    from sfumato.config.schema import Experiment


def list_() -> None:
    """The presets with their parameter counts."""
    from sfumato.config.overrides import preset_names
    from sfumato.config.schema import load_experiment
    from sfumato.models.sizes import parameter_count

    table = Table("preset", box=None, pad_edge=False, header_style="bold")
    table.add_column("parameters", justify="right")
    table.add_column("image")
    table.add_column("about")
    for name in preset_names():
        experiment = load_experiment(name)
        count = f"{parameter_count(experiment):,}"
        table.add_row(name, count, _image_shape(experiment), experiment.about)
    plain_console().print(table)


def _image_shape(experiment: "Experiment") -> str:
    data = getattr(experiment, "data", None)
    if data is None:
        return "32x32x3"
    shape = f"{data.resolution}x{data.resolution}x{data.channels}"
    return shape if data.is_resolved else "by the data"


def show(preset: Preset, settings: Settings = None) -> None:
    """A preset with every setting and its meaning: the start of a YAML file of your own."""
    from sfumato.config.reference import commented_yaml
    from sfumato.config.schema import load_experiment

    typer.echo(commented_yaml(load_experiment(preset, settings or [])), nl=False)


def settings() -> None:
    """Every setting with its type, default and meaning, in Markdown (docs/settings.md)."""
    from sfumato.config.reference import settings_reference

    typer.echo(settings_reference(), nl=False)


presets_app = typer.Typer(
    help="List the presets, show one in full, or every setting.", no_args_is_help=True
)
register(
    presets_app,
    [
        (list_, "sfumato presets list"),
        (show, "sfumato presets show digits > mine.yaml"),
        (settings, "sfumato presets settings"),
    ],
)
