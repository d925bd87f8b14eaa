"""What a data source names: one that comes with sfumato, a folder, or a Hub data set.

Imports no torch, so a mistyped source is reported at once.
"""

from pathlib import Path

from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.data.sources.hub import is_hub_name

BUNDLED_NAMES = ("digits",)
"""Sources that come with sfumato."""


def check_source(source: str) -> None:
    """`ConfigError` or `InputError` for a source that is not on this machine and no Hub name."""
    if source not in BUNDLED_NAMES:
        local_folder(source)


def local_folder(source: str) -> Path | None:
    """The folder of a source that is not bundled, None for a Hub name; errors as `check_source`."""
    if not source:
        raise ConfigError(
            "No images are named.",
            hint="Add --data FOLDER (your own images), --data OWNER/NAME (from the Hub) or "
            "--data digits.",
        )
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InputError(f"{folder} is a file.", hint="Give the folder that it lies in.")
    if is_hub_name(source):
        if folder.parent.is_dir():
            raise InputError(
                f"There is no folder '{folder.name}' in {folder.parent}.",
                hint="Check the spelling. A data set of the Hub by this name is fetched from any "
                f"place that has no folder '{folder.parts[0]}'.",
            )
        return None
    if "/" in source or source.startswith(("~", ".")):
        raise InputError(f"{folder} does not exist.", hint="Give a folder of images.")
    raise ConfigError(
        f"data.source: no source named '{source}', and no folder of that name in {Path.cwd()}.",
        hint=f"{nearest(source, list(BUNDLED_NAMES))} A folder or a Hub name OWNER/NAME will do "
        "too.",
    )
