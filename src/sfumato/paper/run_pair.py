"""Two runs of the findings: which they may be, and what they differ in."""

from pathlib import Path

from sfumato.base.errors import InputError
from sfumato.config.overrides import differences
from sfumato.config.sections import DataConfig
from sfumato.data.opening import source_identity
from sfumato.generation.model import Model
from sfumato.generation.runs import experiment_of_run

_NO_MATTER = {
    "about",
    "data.source",
    "data.held_out",
    "data.loading",
    "data.workers",
    "data.max_damaged",
    "name",
    "sampling.guidance_scale",
    "training.caption_dropout",
    "training.micro_batches",
}
"""Settings that change no image, or of which it is known."""
_USED = ("sampling.sampler", "sampling.steps", "sampling.timestep_spacing")
_LENGTH = ("training.images", "training.epochs")
"""What was asked for; how far the weights have come is compared instead."""
_CADENCE = (
    "_every_images",
    "keep_checkpoints",
    "checkpoint_epochs",
    "also_halflives_images",
    "trackers",
)


def run_of(model: Model, *, dropout: bool) -> tuple[Path, DataConfig]:
    """The run's folder and data; `InputError` for a pipeline, or where dropout is the other way."""
    if model.folder is None or model.data is None:
        raise InputError(
            "Findings need a run: a pipeline has no record of its training.",
            hint="Give the folder of the run that it came from.",
        )
    share = model.provenance["caption_dropout"]
    if (share > 0) != dropout:
        first = f"{model.folder} was trained with caption_dropout = {share:g}"
        raise InputError(
            f"{first}, but {'the second' if dropout else 'the first'} run is the one "
            f"{'with' if dropout else 'without'} dropout.",
            hint="sfumato findings RUN_WITHOUT_DROPOUT [RUN_WITH_DROPOUT]",
        )
    return model.folder, model.data


def check_pair(first: DataConfig, second: DataConfig) -> None:
    """`InputError` for data without common real images."""
    unlike = [
        f"data.{name}: {getattr(first, name)} and {getattr(second, name)}"
        for name in ("resolution", "channels", "fit", "split_seed", "test_share", "tuning_share")
        if getattr(first, name) != getattr(second, name)
    ]
    if source_identity(first) != source_identity(second):
        unlike.insert(0, f"data.source: {first.source} and {second.source}")
    if unlike:
        raise InputError(
            "The two runs have no common real images:\n  " + "\n  ".join(unlike),
            hint="Train both on the same data.",
        )


def differences_of(first: Model, second: Model) -> list[str]:
    """What the two models differ in beside dropout, as "setting: value and value"."""
    assert first.folder is not None
    assert second.folder is not None
    found = {
        name: values
        for name, values in differences(
            experiment_of_run(first.folder), experiment_of_run(second.folder)
        ).items()
        if name not in {*_NO_MATTER, *_USED, *_LENGTH}
        and not name.endswith(_CADENCE)
        and not name.startswith("evaluation.")
    }
    for name in _USED:  # they may be others than the run's own
        field = name.removeprefix("sampling.")
        found[name] = (getattr(first.sampling, field), getattr(second.sampling, field))
    found["images seen"] = tuple(one.provenance["images_seen"] for one in (first, second))
    return [f"{name}: {_short(a)} and {_short(b)}" for name, (a, b) in found.items() if a != b]


def _short(value: object) -> str:
    return f"{len(value)} of them" if isinstance(value, list) and len(value) > 4 else str(value)
