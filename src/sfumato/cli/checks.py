"""Checks of what was typed, before anything heavy is imported; Typer calls them."""

import os
import re
from pathlib import Path

from sfumato.base.errors import InputError


def checked_model(path: str) -> str:
    from sfumato.generation.bundle_names import check_model

    check_model(path)
    return path


def checked_source(source: str | None) -> str | None:
    from sfumato.data.sources.local import check_source

    if source is not None:
        check_source(source)
    return source


def checked_prompts(prompts: list[str] | None) -> list[str] | None:
    for prompt in prompts or ():
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = os.fsencode(prompt).decode("utf-8", "backslashreplace")
            raise InputError(
                f"The prompt '{shown}' is not text in the encoding of this terminal.",
                hint="Write it in UTF-8, or into a file in UTF-8: --prompts-file FILE.",
            ) from error
    return prompts


def checked_folder(folder: Path | None) -> Path | None:
    """`InputError` for a folder that cannot be made or written into: before hours of work. Of
    several ranks the first alone writes, and another may have something else there."""
    if folder is not None and is_first_rank():
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file.", hint="Give --out a new folder.")
        _check_place(folder)
    return folder


def is_first_rank() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def checked_file(file: Path | None) -> Path | None:
    """`InputError` for a file that cannot be written."""
    if file is not None:
        if file.is_dir():
            raise InputError(f"{file} is a folder.", hint="Give --out the name of a file.")
        _check_place(file.parent)
    return file


def _check_place(folder: Path) -> None:
    places = (folder.absolute(), *folder.absolute().parents)
    there = next(place for place in places if os.path.lexists(place))
    if not there.is_dir():
        raise InputError(
            f"Cannot write {folder}: {there} is a file.", hint="Give --out another folder."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"No permission to write {folder}.",
            hint="Choose a folder of your own, or change its permissions.",
        )


def checked_device(name: str) -> str:
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise InputError(f"No device named '{name}'.", hint="Use auto, cpu or cuda.")
    return name


def checked_dtype(name: str) -> str:
    from sfumato.base.device import dtype_name

    return dtype_name(name)


def checked_sampler(name: str | None) -> str | None:
    from sfumato.diffusion.solvers.registry import sampler_name

    return None if name is None else sampler_name(name)


def checked_spacing(name: str | None) -> str | None:
    from typing import get_args

    from sfumato.diffusion.solvers.registry import TimestepSpacing

    known = get_args(TimestepSpacing)
    if name is not None and name not in known:
        raise InputError(
            f"No timestep spacing named '{name}'.",
            hint=f"Use {', '.join(known[:-1])} or {known[-1]}.",
        )
    return name


def checked_samplers(names: list[str] | None) -> list[str]:
    return [str(checked_sampler(name)) for name in names or ()]


def checked_form(text: str | None) -> str | None:
    from sfumato.diffusion.guidance import parse_guidance

    return None if text is None else str(parse_guidance(text))


def checked_forms(texts: list[str] | None) -> list[str]:
    return [str(checked_form(text)) for text in texts or ()]


def checked_png(path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise InputError(f"--out {path}: the picture is a PNG.", hint="End the name with .png.")
    checked_file(path)
    return path


def parsed_counts(text: str | None) -> tuple[int, ...] | None:
    """Whole numbers above 0 from `4,2,1`; None where they are not given."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]+", part) and int(part) for part in parts):
        raise InputError(
            f"'{text}' is not whole numbers above 0 with commas.", hint="For example: 4,2,1"
        )
    return tuple(int(part) for part in parts)


def parsed_scales(text: str | None) -> tuple[float, ...] | None:
    """Guidance scales from `0,1,2`; None where they are not given."""
    if text is None:
        return None
    try:
        scales = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(
            f"--scales {text}: not numbers with commas.", hint="For example: --scales 0,1,2,3,5"
        ) from error
    for scale in scales:
        if not 0 <= scale <= 1000:
            raise InputError(f"Guidance scale {scale:g} is not between 0 and 1000.")
    return scales


def check_server_packages(command: str) -> None:
    """`InputError` without the packages of the extra `studio`."""
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("starlette", "uvicorn", "python_multipart")):
        raise InputError(
            f"`sfumato {command}` needs packages that are not installed.",
            hint="pip install 'sfumato[studio]'",
        )
