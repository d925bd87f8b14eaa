"""`bundled:NAME`, the name of a model that comes with sfumato. Imports nothing heavy."""

from pathlib import Path

from sfumato.base.errors import InputError, nearest

PREFIX = "bundled:"
INDEX, HASHES = "bundle.json", "sha256.json"
"""The files by which a folder is known to be a bundle: one of them, for the other may be lost."""


CAN_FILE, EXPERIMENT = "can.json", "experiment.yaml"
"""By which an exported CAN is known, and a run."""
PACKAGE = Path(__file__).parent / "bundled"


def is_bundle(model: str | Path) -> bool:
    """Whether `model` is `bundled:NAME`, known or not, or a folder in the same form."""
    if str(model).startswith(PREFIX):
        return True
    return any((Path(model) / file).is_file() for file in (INDEX, HASHES))


def bundled_names() -> list[str]:
    """The models that come with sfumato, without the prefix."""
    return sorted(path.name for path in PACKAGE.iterdir() if is_bundle(path))


def is_in_package(folder: Path) -> bool:
    """Whether a folder is that of a model which comes with sfumato, by whatever path."""
    return folder.resolve().parent == PACKAGE.resolve()


def model_folder(model: str | Path) -> Path:
    """Where a model lies: in the package for `bundled:NAME`, else `model` itself.

    `InputError` with the nearest known name for one that does not come with sfumato.
    """
    if not str(model).startswith(PREFIX):
        return Path(model)
    name = str(model).removeprefix(PREFIX)
    if Path(name).name != name or not is_bundle(PACKAGE / name):
        raise InputError(
            f"No model named '{name}' comes with sfumato.",
            hint=nearest(str(model), [PREFIX + one for one in bundled_names()]),
        )
    return PACKAGE / name


def is_model(model: str | Path) -> bool:
    """Whether `model` is a run, a pipeline folder or a bundle, or names one (`bundled:NAME`)."""
    files = (EXPERIMENT, "model_index.json", CAN_FILE)
    return any((Path(model) / file).is_file() for file in files) or is_bundle(model)


def is_can(model: str | Path) -> bool:
    """Whether `model` is a run or an export of a CAN, by a look at its files."""
    if (Path(model) / CAN_FILE).is_file():
        return True
    file = Path(model) / EXPERIMENT
    return file.is_file() and "\nmethod: can\n" in file.read_text("utf-8", errors="replace")


def check_model(model: str | Path) -> None:
    """`InputError` for what is no model, before anything is loaded."""
    folder = model_folder(model)
    if not str(model).startswith(PREFIX) and not is_model(model):
        raise InputError(
            f"{folder} is neither a run nor a pipeline."
            if folder.exists()
            else f"{folder} does not exist.",
            hint="Give a folder made by `sfumato train` or `sfumato demo`, or bundled:mnist.",
        )


def path_and_scale(name: str) -> tuple[str, float | None]:
    """`PATH@3` is the path and w = 3."""
    path, at, scale = name.rpartition("@")
    if not at or Path(name).exists():
        return name, None
    try:
        return path, float(scale)
    except ValueError as error:
        raise InputError(
            f"{name}: '{scale}' is no guidance scale.", hint="For example: runs/demo@3"
        ) from error


def check_comparable(name: str) -> None:
    """`InputError` for what `sfumato compare` cannot compare, before anything is loaded."""
    path, _ = path_and_scale(name)
    if not model_folder(path).exists():
        raise InputError(
            f"{path} does not exist.",
            hint="Give runs, pipelines or folders with a card.json; PATH@3 names w = 3.",
        )


def beside(model: str | Path, what: str) -> Path:
    """Where `what` is made of a model lies by default: in a run or a pipeline folder.

    A bundle holds what its hashes list and nothing else, and the package is not ours to write
    into: of one that comes with sfumato it lies in the working directory, of another next to it.
    """
    if str(model).startswith(PREFIX):
        return Path(f"{str(model).removeprefix(PREFIX)}-{what}")
    path = Path(model)
    if is_in_package(path):
        return Path(f"{path.resolve().name}-{what}")
    if is_bundle(path):
        return path.resolve().with_name(f"{path.resolve().name}-{what}")
    return path / what
