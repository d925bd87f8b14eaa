"""A picture's settings to what is asked for, to a command and to Python, and back."""

import shlex
from typing import Any

from sfumato.base.errors import InputError
from sfumato.interactive.studio.asked import Picture
from sfumato.interactive.studio.shelf import Shelf

_BEYOND = {
    "init_image_sha256": "it began with a picture",
    "genome": "it is of an evolution",
    "to_prompt": "it is between two pictures",
    "x0_range": "its x0 has another range",
    "sampler_settings": "its sampler has other settings",
    "dtype": "its network computed in another precision",
    "compiled": "its network was compiled",
}
"""Settings that the studio does not make again."""


def restored(settings: dict[str, str], shelf: Shelf) -> dict[str, Any]:
    """What makes the picture of those `settings` again: `picture`, and `notes` on what stands in
    the way. `InputError` for settings that no picture of sfumato has."""
    name = shelf.of_weights(settings.get("weights_sha256", ""))
    notes = [
        f"The studio does not make it again: {why}."
        for key, why in _BEYOND.items()
        if settings.get(key)
    ]
    if name is None:
        model = settings.get("experiment") or "unknown"
        notes.append(f"It was made by another model ({model}), which is not open here.")
    try:
        picture = Picture(
            model=name or "unknown",
            prompt=settings["prompt"],
            negative_prompt=settings.get("negative_prompt", ""),
            seed=int(settings["seed"] or 0),
            guidance=_number(settings.get("guidance_scale")),
            form=settings.get("guidance"),
            sampler=settings.get("sampler"),
            steps=_whole(settings.get("steps")),
            timestep_spacing=settings.get("timestep_spacing"),  # pyright: ignore
            alone=settings.get("rows") == "1",
        )
    except (KeyError, ValueError) as error:
        raise InputError(
            "The settings in the PNG are not what sfumato writes.", hint="They may be altered."
        ) from error
    return {"picture": {**picture.model_dump(), "model": name}, "notes": notes}


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)


def as_command(picture: Picture, device: str = "auto") -> str:
    """The command that makes the same picture. `device`: as `load` takes it."""
    options = {
        "--seed": picture.seed,
        "--guidance": _exact(picture.guidance),
        "--guidance-form": picture.form,
        "--sampler": picture.sampler,
        "--steps": picture.steps,
        "--timestep-spacing": picture.timestep_spacing,
        "--negative-prompt": picture.negative_prompt or None,
        "--device": None if device == "auto" else device,
    }
    words = ["sfumato", "sample", picture.model]
    for name, value in options.items():
        words += [] if value is None else [name, str(value)]
    # After `--` one that begins with a dash is no option. An empty one is given too.
    words += ["--", picture.prompt] if picture.prompt.startswith("-") else [picture.prompt]
    return shlex.join(words)


def _exact(number: float | None) -> str | None:
    """`3` and `1.25`: the number that is read back is the same."""
    if number is None:
        return None
    return str(int(number)) if number.is_integer() else repr(number)


def as_python(picture: Picture, device: str = "auto") -> str:
    """Lines of Python that make the same picture. `device`: as `load` takes it."""
    given: dict[str, Any] = picture.changes()
    if picture.negative_prompt:
        given = {"negative_prompt": picture.negative_prompt, **given}
    if not picture.alone:
        given["alone"] = False
    first = f"{picture.prompt!r}, seeds={picture.seed}"
    more = "".join(f", {name}={value!r}" for name, value in given.items())
    where = "" if device == "auto" else f", device={device!r}"
    return (
        "import sfumato\n\n"
        f"model = sfumato.load({picture.model!r}{where})\n"
        f"picture = model.sample({first}{more})\n"
        'open("picture.png", "wb").write(picture.png(0))\n'
    )
