"""`sfumato sample`."""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.base.errors import InputError, LintWarning
from sfumato.base.files import remove_incomplete
from sfumato.base.lock import locked
from sfumato.base.memory import collection_paused
from sfumato.base.progress import Progress
from sfumato.cli.options import LoadingOptions, ModelPath, SamplingOptions, Seed, stoppable
from sfumato.cli.show import log, open_model, unused, warn_of_sampling

if TYPE_CHECKING:
    from sfumato.generation.collection import Group
    from sfumato.generation.prompts_file import PromptLine


def sample(
    model: ModelPath,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts, each in quotes.", show_default=False)
    ] = None,
    *,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="A prompt a line, or JSON lines with settings; goes on where it was."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, help="Images for each prompt.")] = 1,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    sampling: SamplingOptions,
    seed: Seed = 0,
    loading: LoadingOptions,
) -> None:
    """Sample images from prompts. Each PNG carries its settings; see `sfumato inspect`."""
    lines = _lines(prompts or [], prompts_file)
    with collection_paused(freeze=True):  # imports take longer than to sample one image
        from sfumato.generation.collection import groups_of, sample_groups

        opened = open_model(model, loading, **sampling.changes())
    groups = groups_of(opened, lines, seed=seed, count=count, negative_prompt=negative_prompt)
    for group in groups:
        _warn(group)
    if prompts_file is not None:
        _collect(groups, out)
        return
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


def _warn(group: "Group") -> None:
    """Warn of settings with which the model will not do what they seem to say."""
    warn_of_sampling(group.model)
    sampling = group.model.sampling
    if group.negative_prompt and (sampling.guidance_scale == 1 or sampling.form.needs_weak_network):
        how = "autoguidance" if sampling.form.needs_weak_network else "w = 1"
        warnings.warn(
            f"The negative prompt '{group.negative_prompt}' changes nothing with {how}: the model "
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
            log(f"{made:,} of {total:,} images are in {out} already.")
        if missing:
            progress(made, total)

        def count(_: Path) -> None:
            nonlocal made
            made += 1
            progress(made, total)

        sample_groups(groups, lambda settings: unused(out / file_name(settings)), on_image=count)
    log(f"{total:,} images in {out}, {missing:,} of them new.")


def _print(path: Path) -> None:
    print(path, flush=True)


def file_name(settings: dict[str, Any]) -> str:
    """`a-handwritten-digit-7-w3-apg-seed0.png`; plain guidance is not named."""
    words = re.sub(r"[^\w]+", "-", settings["prompt"].lower()).strip("-")[:60] or "empty"
    form = settings["guidance"].partition(":")[0]
    guidance = f"w{settings['guidance_scale']:g}" + ("" if form == "cfg" else f"-{form}")
    return f"{words}-{guidance}-seed{settings['seed']}.png"
