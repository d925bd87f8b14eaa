"""`sfumato sample`."""

import re
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError, LintWarning
from sfumato.base.files import remove_incomplete
from sfumato.base.lock import locked
from sfumato.base.memory import collection_paused
from sfumato.base.progress import Progress
from sfumato.base.words import counted
from sfumato.cli.checks import checked_folder, checked_prompts
from sfumato.cli.options import (
    MANY_IMAGES,
    LoadingOptions,
    ModelPath,
    SamplingOptions,
    Seed,
    Yes,
    confirm_many,
    refuse_many,
    stoppable,
)
from sfumato.cli.show import log, open_model, unused, warn_of_sampling
from sfumato.generation.bundle_names import is_can

if TYPE_CHECKING:
    from sfumato.generation.collection import Group
    from sfumato.generation.model import Model
    from sfumato.generation.prompts_file import PromptLine
    from sfumato.generation.start import Start


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What sampling starts from beside noise."""

    init_image: Annotated[Path | None, typer.Option(help="Picture to start from.")] = None
    mask: Annotated[
        Path | None,
        typer.Option(help="As large as that picture: white is painted anew, black is kept."),
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(help="Share of the steps done from it, up to 1; else 0.8, with a mask 1."),
    ] = None

    def check(self) -> None:
        """`InputError` for what can be seen to be wrong without a model."""
        for name, given in (("--mask", self.mask), ("--strength", self.strength)):
            if self.init_image is None and given is not None:
                raise InputError(
                    f"There is a {name} and no --init-image.",
                    hint="Give --init-image FILE, the picture to start from.",
                )
        for name, file in (("--init-image", self.init_image), ("--mask", self.mask)):
            if file is not None and not file.is_file():
                raise InputError(
                    f"{name} {file} is not a file." if file.exists() else f"{file} does not exist.",
                    hint=f"Give {name} a picture, such as a PNG or a JPEG.",
                )
        if self.strength is not None and not 0 < self.strength <= 1:
            raise InputError(
                f"--strength {self.strength:g} is out of range.",
                hint="Give more than 0, where the picture stays, to 1, where it is all new.",
            )

    def of(self, model: "Model") -> "Start | None":
        return model.start(self.init_image, self.mask, self.strength)


@dataclass(frozen=True, kw_only=True)
class WayOptions:
    """From one image to another."""

    interpolate: Annotated[
        int | None,
        typer.Option(min=2, help="Frames from the first prompt and seed to the last, with a GIF."),
    ] = None
    last_seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Seed of the last frame; else the one after."),
    ] = None

    def check(self, prompts: list[str], **given: bool) -> None:
        """`InputError` for what does not go with frames, by option."""
        if self.interpolate is None:
            if self.last_seed is not None:
                raise InputError(
                    "There is a --last-seed and no --interpolate.",
                    hint="--interpolate N samples N frames from --seed to --last-seed.",
                )
            return
        if wrong := [name for name, there in given.items() if there]:
            option = f"--{wrong[0].replace('_', '-')}"
            raise InputError(
                f"--interpolate and {option} do not go together.", hint="Leave one of them out."
            )
        if len(prompts) not in (1, 2):
            raise InputError(
                f"--interpolate has {len(prompts)} prompts.",
                hint="Give two, each in quotes, or one to go from seed to seed.",
            )


_PNG_BYTES = 1_000
"""Of a PNG beside its pixels: the settings."""


def sample(
    model: ModelPath,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            callback=checked_prompts, help="Prompts, each in quotes.", show_default=False
        ),
    ] = None,
    *,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="A prompt a line, or every line JSON with settings; lines that begin with # are "
            "left out. Goes on where it was."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(callback=checked_folder, help="Folder for the PNGs.")] = Path(
        "samples"
    ),
    count: Annotated[int, typer.Option(min=1, help="Images for each prompt.")] = 1,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    start: StartOptions,
    way: WayOptions,
    sampling: SamplingOptions,
    seed: Seed = 0,
    loading: LoadingOptions,
    yes: Yes = False,
) -> None:
    """Sample images from prompts. Each PNG carries its settings; see `sfumato inspect`.

    Of a CAN the prompt names the class; without one it draws every class.
    """
    start.check()
    way.check(
        prompts or [],
        prompts_file=prompts_file is not None,
        count=count > 1,
        init_image=start.init_image is not None,
    )
    _warn_of_lost_quotes(prompts or [])
    if not prompts and prompts_file is None and is_can(model):
        prompts = open_model(model, loading, can=True).examples()[0]
    lines = _lines(prompts or [], prompts_file)
    total = sum(count if line.count is None else line.count for _, line in lines)
    total = total if way.interpolate is None else way.interpolate
    refuse_many(total, yes=yes)
    with collection_paused(freeze=True):  # imports take longer than to sample one image
        from sfumato.generation.collection import groups_of, sample_groups

        opened = open_model(model, loading, can=True, **sampling.changes())
    if way.interpolate is not None:
        seeds = (seed, seed + 1 if way.last_seed is None else way.last_seed)
        _interpolate(opened, prompts or [], seeds, way.interpolate, negative_prompt, out)
        return
    if total > MANY_IMAGES and not yes:
        confirm_many(total, what=_cost_of(total, opened, lines[0][1].prompt, out))
    groups = groups_of(
        opened,
        lines,
        seed=seed,
        count=count,
        negative_prompt=negative_prompt,
        start=start.of(opened),
    )
    for group in groups:
        _warn(group)
    if prompts_file is not None:
        _collect(groups, out)
        return
    with stoppable("Stopped. The images above are whole."):
        sample_groups(
            groups,
            lambda settings: unused(out / file_name(settings)),
            on_image=_print,
            alone=sum(len(group.images) for group in groups) == 1,
        )


def _lines(prompts: list[str], file: Path | None) -> "list[tuple[int, PromptLine]]":
    """What is to be sampled, with the number of its line; `InputError` where it is not clear."""
    from sfumato.generation.prompts_file import PromptLine, read_prompts

    if bool(prompts) == (file is not None):
        raise InputError(
            "There are prompts and a --prompts-file." if prompts else "There is no prompt.",
            hint="Give prompts after the model, each in quotes, or --prompts-file FILE.",
        )
    if file is not None:
        return read_prompts(file)
    return [(0, PromptLine(prompt=prompt)) for prompt in prompts]


def _warn_of_lost_quotes(prompts: list[str]) -> None:
    """Warn where the words of one prompt seem to have become prompts of their own."""
    if len(prompts) > 1 and all(re.fullmatch(r"\S+", prompt) for prompt in prompts):
        whole = " ".join(prompts)
        warnings.warn(
            f"These are {len(prompts):,} prompts of one word each: {', '.join(prompts[:8])}"
            f"{', ...' if len(prompts) > 8 else ''}. One prompt of several words takes quotes: "
            f'"{whole[:80]}".',
            LintWarning,
            stacklevel=2,
        )


def _cost_of(count: int, model: "Model", prompt: str, out: Path) -> str:
    """What that many images take, by the time of one."""
    from sfumato.base.progress import clock

    started = time.monotonic()
    image = model.sample(prompt, 0).tensor
    seconds = (time.monotonic() - started) * count
    above = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    needed, free = count * (image.numel() + _PNG_BYTES), shutil.disk_usage(above).free
    return (
        f"up to {needed / 1e9:,.3g} GB of the {free / 1e9:,.3g} GB that are free, and at most "
        f"{clock(seconds)} ({'h:m:s' if seconds >= 3600 else 'm:s'}) by the time of one image"
    )


def _warn(group: "Group") -> None:
    """Warn of settings with which the model will not do what they seem to say."""
    start = group.start
    if start is not None and start.strength == 1 and start.paint is None:
        warnings.warn(
            "With a strength of 1 and no mask the start image changes nothing: sampling starts "
            "from noise alone.",
            LintWarning,
            stacklevel=2,
        )
    prompts = [prompt for prompt, _ in group.images]
    _warn_of_prompts(group.model, prompts, group.negative_prompt)


def _warn_of_prompts(model: "Model", prompts: list[str], negative_prompt: str) -> None:
    from sfumato.generation.subjects import warn_of_other_subjects

    warn_of_sampling(model)
    warn_of_other_subjects(model, prompts)
    sampling = model.sampling
    if negative_prompt and (sampling.guidance_scale == 1 or sampling.form.needs_weak_network):
        how = "autoguidance" if sampling.form.needs_weak_network else "w = 1"
        warnings.warn(
            f"The negative prompt '{negative_prompt}' changes nothing with {how}: the model "
            "is not asked for it. Use a guidance scale above 1 and a form of guidance that leads "
            "away from the empty prompt.",
            LintWarning,
            stacklevel=2,
        )


def _collect(groups: "list[Group]", out: Path) -> None:
    """Sample what is not there yet, with progress; one process at a time in the folder."""
    from sfumato.generation.collection import sample_groups, without_those_in

    total = sum(len(group.images) for group in groups)
    with locked(out), stoppable("Stopped. The same command makes the images that are missing."):
        remove_incomplete(out)
        groups = without_those_in(out, groups)
        missing = sum(len(group.images) for group in groups)
        progress, made = Progress().of("images"), total - missing
        if made:
            log(f"{made:,} of {counted(total, 'image')} are in {out} already.")
        if missing:
            progress(made, total)

        def count(_: Path) -> None:
            nonlocal made
            made += 1
            progress(made, total)

        sample_groups(groups, lambda settings: unused(out / file_name(settings)), on_image=count)
    log(f"{counted(total, 'image')} in {out}, {missing:,} of them new.")


def _interpolate(
    model: "Model",
    prompts: list[str],
    seeds: tuple[int, int],
    frames: int,
    negative_prompt: str,
    out: Path,
) -> None:
    from sfumato.generation.frames import write_frames

    _warn_of_prompts(model, prompts, negative_prompt)
    at = [index / (frames - 1) for index in range(frames)]
    samples = model.interpolate(prompts, seeds, at, negative_prompt=negative_prompt)
    ends = "-to-".join(dict.fromkeys(map(_words, prompts)))
    folder = unused(out / f"{ends}-seed{seeds[0]}-to-{seeds[1]}")
    write_frames(samples, folder)
    _print(folder)


def _print(path: Path) -> None:
    print(path, flush=True)


def file_name(settings: dict[str, Any]) -> str:
    """`a-handwritten-digit-7-w3-apg-seed0.png`; plain guidance is not named, nor that of a CAN."""
    if "guidance" not in settings:  # a CAN's
        return f"{_words(settings['prompt'] or settings['experiment'])}-seed{settings['seed']}.png"
    form = settings["guidance"].partition(":")[0]
    guidance = f"w{settings['guidance_scale']:g}" + ("" if form == "cfg" else f"-{form}")
    strength = f"-strength{settings['strength']:g}" if "strength" in settings else ""
    return f"{_words(settings['prompt'])}-{guidance}{strength}-seed{settings['seed']}.png"


def _words(prompt: str) -> str:
    """The words of a prompt that a file name can hold."""
    known = prompt.encode(sys.getfilesystemencoding(), "ignore")
    text = known.decode(sys.getfilesystemencoding())
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60] or "empty"
