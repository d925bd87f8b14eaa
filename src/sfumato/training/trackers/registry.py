"""The trackers by name: one file and one entry each."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from sfumato.base.errors import ConfigError
from sfumato.training.trackers.protocol import Tracker


class Entry(NamedTuple):
    """A tracker: the module with `TRACKER`, which makes one, and `address`, which says where it
    sends and raises where that cannot be right; the package that it needs, None for none."""

    module: str
    package: str | None


TRACKERS: Mapping[str, Entry] = {
    "tensorboard": Entry("sfumato.training.trackers.tensorboard", None),
    "mlflow": Entry("sfumato.training.trackers.mlflow", "mlflow"),
    "wandb": Entry("sfumato.training.trackers.wandb", "wandb"),
}


def check_trackers(names: Sequence[str]) -> None:
    """`ConfigError` for a tracker whose package is missing, or whose address cannot be right."""
    for name in names:
        module, package = TRACKERS[name]
        if package is not None and find_spec(package) is None:
            raise ConfigError(
                f"The tracker '{name}' needs the package {package}, which is not installed.",
                hint=f'Install it with: pip install "sfumato[{name}]"',
            )
        import_module(module).address()


def tracker_of(name: str) -> Tracker:
    """A new one; its package is imported when it is opened."""
    return import_module(TRACKERS[name].module).TRACKER()


def address_of(name: str) -> str:
    return import_module(TRACKERS[name].module).address()
