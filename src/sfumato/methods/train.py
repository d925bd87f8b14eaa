"""`sfumato.train`: training from Python."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sfumato.base.progress import in_notebook
from sfumato.config.schema import Experiment, load_experiment
from sfumato.data.arrays import stored_columns, write_images
from sfumato.data.survey import OWN_CAPTION
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.origin import load_from
from sfumato.methods.registry import method_of, run_experiment
from sfumato.training.folder import DATA, check_is_run
from sfumato.training.hooks import BaseHook
from sfumato.training.lint import warn
from sfumato.training.loop import STOP, Run
from sfumato.training.notebook import NotebookProgress
from sfumato.training.progress import TrainingProgress, print_start

Callback = Callable[[Run, Mapping[str, float]], object]


@dataclass(frozen=True)
class TrainedRun:
    """A run after training; `finished` is False where training was interrupted."""

    folder: Path
    images_seen: int
    finished: bool
    device: str = "auto"

    @cached_property
    def model(self) -> Model:
        """The trained model: the averaged weights of the newest checkpoint."""
        return load(self.folder, device=self.device)


class CallbackHook(BaseHook):
    """Passes to a function the run and the metrics of each step."""

    def __init__(self, callback: Callback | None) -> None:
        self.callback = callback

    def after_step(self, run: Run, metrics: Mapping[str, float]) -> None:
        if self.callback is not None:
            self.callback(run, {name: value for name, value in metrics.items() if name != STOP})


def train(
    preset: str | Path,
    *,
    out: str | Path,
    data: Any = None,
    origin: str | Path | None = None,
    device: str = "auto",
    callback: Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> TrainedRun:
    """Train a preset in the folder `out`; a run that is there is resumed exactly.

    Args:
        preset: the name of a preset, or a YAML file.
        out: the run folder.
        data: a folder of images, a Hub name OWNER/NAME or `digits`; `(images, captions)` with uint8
            images (N, H, W) or (N, H, W, C), or a list of Pillow images; a torch Dataset of
            `(image, caption)` or of mappings; or settings of the `data` section, whose `source` is
            one of these. Images from Python are written once, into `out/data`.
        origin: a run folder, an exported folder or `bundled:NAME`, whose weights the run begins
            with; network, process, codec and text encoder are those of that model.
        device: `auto`, `cpu` or `cuda`.
        callback: called with the run and its metrics after each step. It may set
            `run.stop_requested` to end training with a checkpoint.
        progress: print progress; in a notebook, show it with the curve of the loss and the newest
            samples, in place.
        settings: other settings, as `--set` takes them: `training={"images": 20_000}`, `seed=1`.

    Ctrl-C (or interrupting the kernel) ends training after the current step, with a checkpoint; the
    same call resumes it. Raises `SfumatoError` for settings, data or folders that cannot be used.
    """
    folder = Path(out)
    experiment = _experiment(preset, data, settings, folder, origin)
    warn(method_of(experiment).lint(experiment))
    run = run_experiment(
        experiment,
        folder,
        device=device,
        hooks=[_progress(progress), CallbackHook(callback)],
        on_start=print_start if progress else lambda run: None,
    )
    return TrainedRun(folder, run.images_seen, run.finished, device)


def _progress(shown: bool) -> TrainingProgress:
    return NotebookProgress() if shown and in_notebook() else TrainingProgress(show=shown)


def _experiment(
    preset: str | Path,
    data: Any,
    settings: Mapping[str, Any],
    folder: Path,
    origin: str | Path | None,
) -> Experiment:
    """The experiment of `train`'s arguments; images from Python are written once it is valid."""

    def loaded() -> Experiment:
        given = list(overrides({"data": section, **settings}))
        if origin is None:
            return load_experiment(preset, given)
        return load_from(str(origin), preset, given, folder)

    section = dict(data) if isinstance(data, Mapping) else {"source": data}
    source = section.pop("source", None)
    if isinstance(source, str | Path):
        section["source"] = str(source)
    else:
        loaded()
        section = {**_stored(source, folder), **section}
    return loaded()


def _stored(images: Any, folder: Path) -> dict[str, Any]:
    """Settings for images from Python, which are written into the run folder; where `images` is
    None, for those that an earlier call wrote."""
    stored = folder / DATA
    if images is not None:
        check_is_run(folder)
        write_images(images, stored)
    columns = stored_columns(stored)
    section: dict[str, Any] = {"source": str(stored.resolve())} if columns else {}
    if "caption" in columns:  # the templates of a preset are for its own data
        section |= {"caption": [OWN_CAPTION], "held_out": []}
    return section


def overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`section.key=value` for nested settings, as `--set` takes them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, default=_plain, ensure_ascii=False)}"


def _plain(value: Any) -> Any:
    """A number of NumPy or torch, a path or a range as JSON knows it."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else list(value)
