"""Options that several commands share, checked before anything heavy is imported."""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from sfumato.base.errors import InputError
from sfumato.base.section import Section
from sfumato.cli.checks import (
    checked_device,
    checked_dtype,
    checked_file,
    checked_folder,
    checked_form,
    checked_forms,
    checked_model,
    checked_sampler,
    checked_source,
    checked_spacing,
    parsed_counts,
    parsed_scales,
)

S = TypeVar("S", bound=Section)

INTERRUPTED = 130
"""Exit code of a run that was asked to stop: the shell's for Ctrl-C."""
RESUMES = "Stopped. The same command resumes from here."


@contextmanager
def stoppable(message: str = RESUMES) -> Iterator[None]:
    """Ctrl-C inside ends the command with `message` and the shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\n{message}")
        raise typer.Exit(INTERRUPTED) from None


Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine that share the work.")
]


def run_in_processes(count: int | None, *added: str) -> None:
    """Run this command line, and the arguments `added`, in `count` processes in place of this one,
    and leave with their exit status. Nothing happens for None and for one."""
    if count is None or count == 1:
        return
    from sfumato.training.launch import run_processes

    raise typer.Exit(run_processes([*_without(sys.argv[1:], "--processes"), *added], count))


def _without(arguments: Sequence[str], name: str) -> list[str]:
    """A command line without an option and its value, given as `--name V` or `--name=V`."""
    kept: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == name:
            next(given, None)
        elif not argument.startswith(f"{name}="):
            kept.append(argument)
    return kept


# Very many images ---------------------------------------------------------------------------------

MANY_IMAGES = 50_000
"""What the field's metrics are computed on; of more, a count is asked back."""
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before very many images.")]


def refuse_many(count: int, *, yes: bool) -> None:
    """`InputError` for very many images where nobody can be asked."""
    if count > MANY_IMAGES and not yes and not sys.stdin.isatty():
        raise InputError(
            f"{count:,} images are asked for, more than {MANY_IMAGES:,}.",
            hint="Give a smaller --count, or add --yes where that many are meant.",
        )


def confirm_many(count: int, *, what: str) -> None:
    """Ask whether that many images are meant, which take `what`; else leave."""
    typer.confirm(f"{count:,} images take {what}. Go on?", abort=True)


def ask_for_many(count: int | None, *, yes: bool) -> None:
    """Ask back for very many images to measure."""
    if count is not None and count > MANY_IMAGES and not yes:
        refuse_many(count, yes=yes)
        confirm_many(count, what=f"{count / MANY_IMAGES:,.0f} times as long as {MANY_IMAGES:,}")


# Single options -----------------------------------------------------------------------------------

ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        callback=checked_model,
        help="A run folder, an exported pipeline folder, or bundled:mnist.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change any setting; may be repeated."),
]
Pairs = Annotated[int, typer.Option(min=3, help="Rounds of timings, taken in turn.")]
Record = Annotated[
    Path | None,
    typer.Option("--out", callback=checked_file, help="JSON to write, with every timing."),
]
Device = Annotated[str, typer.Option(callback=checked_device, help="auto, cpu or cuda.")]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", "-w", min=0, max=1000, help="Guidance scale w; 0 is unconditional."),
]
FORM_HELP = (
    "Form of guidance: cfg, interval, rescaled, dynamic_thresholding, channel_thresholding, apg, "
    "autoguidance."
)
FORM_METAVAR = "NAME[:KEY=VALUE,...]"
Form = Annotated[
    str | None,
    typer.Option("--guidance-form", metavar=FORM_METAVAR, callback=checked_form, help=FORM_HELP),
]
Spacing = Annotated[
    str | None,
    typer.Option(
        "--timestep-spacing",
        metavar="NAME",
        callback=checked_spacing,
        help="Which timesteps are visited: trailing, leading or linspace.",
        hidden=True,  # for the commands that the studio writes: a model has its own
    ),
]
Forms = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance-form",
        metavar=FORM_METAVAR,
        callback=checked_forms,
        help=f"{FORM_HELP} May be repeated.",
    ),
]
Scales = Annotated[
    Any,
    typer.Option(
        "--scales",
        metavar="W,W,...",
        callback=parsed_scales,
        help="Guidance scales, with commas: 0,1,2,3,5.",
    ),
]
"""A tuple of floats, or None where it is not given."""
Evaluations = Annotated[
    Any,
    typer.Option(
        "--nfe",
        metavar="N,N,...",
        callback=parsed_counts,
        help="Network evaluations an image, with commas.",
    ),
]
"""A tuple of integers."""
SAMPLER_HELP = (
    "DDPM, DDIM, PNDM, DPMSolver++, DPMSolver++SDE, UniPC, Euler, EulerAncestral, Heun, LMS or LCM."
)
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of the first image; the next ones count up.")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        callback=checked_source,
        help="The real images: a folder, a Hub name OWNER/NAME, or digits; else the model's own.",
    ),
]
Source = Annotated[
    str,
    typer.Argument(callback=checked_source, help="A folder, a Hub name OWNER/NAME, or digits."),
]
Preset = Annotated[str, typer.Argument(help="A preset's name or a YAML file.")]
CardFolder = Annotated[
    Path | None,
    typer.Option(
        callback=checked_folder, help="Folder for card.json and pictures; else with the model."
    ),
]
Untrained = Annotated[
    bool, typer.Option("--untrained", help="Use an untrained classifier: the paper's protocol.")
]
HeldOut = Annotated[
    bool, typer.Option("--held-out", help="Use captions that were never trained on.")
]


# Groups of options --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """How a model's network computes."""

    dtype: Annotated[
        str,
        typer.Option(callback=checked_dtype, help="Network: float32, float16 or bfloat16."),
    ] = "float32"
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network: for many images on a GPU.")
    ] = False

    def given(self) -> dict[str, Any]:
        """As `load` takes them."""
        return {"dtype": self.dtype, "compile": self.compile}


@dataclass(frozen=True, kw_only=True)
class LoadingOptions(PrecisionOptions):
    """Where and how a model's network computes."""

    device: Device = "auto"

    def given(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype, "compile": self.compile}


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How the differential equation is solved."""

    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None
    sampler: Annotated[str | None, typer.Option(callback=checked_sampler, help=SAMPLER_HELP)] = None

    def changes(self) -> dict[str, Any]:
        """What differs from the model's own sampling settings."""
        return {"steps": self.steps, "sampler": self.sampler}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(SolverOptions):
    """How a model samples; what is not given is the model's own."""

    guidance: Guidance = None
    form: Form = None
    timestep_spacing: Spacing = None

    def changes(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "sampler": self.sampler,
            "timestep_spacing": self.timestep_spacing,
            "guidance": self.guidance,
            "form": self.form,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The settings of a run that are changed most, each short for one of --set."""

    epochs: Annotated[float | None, typer.Option(help="Length in passes over the data.")] = None
    images: Annotated[int | None, typer.Option(help="Length in images.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images of one step.")] = None
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None
    resolution: Annotated[int | None, typer.Option(help="Height and width in pixels.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and noise.")] = None
    tracker: Annotated[str | None, typer.Option(help="tensorboard, mlflow, wandb (commas).")] = None

    def overrides(self, settings: Sequence[str]) -> list[str]:
        """The options as `section.key=value`, then `settings`, those of --set. `InputError` where
        two of them say the same or contradict each other."""
        named = {
            "--epochs": ("training.epochs", self.epochs),
            "--images": ("training.images", self.images),
            "--batch-size": ("training.batch_size", self.batch_size),
            "--lr": ("training.optimizer.lr", self.lr),
            "--resolution": ("data.resolution", self.resolution),
            "--seed": ("seed", self.seed),
            "--tracker": ("training.trackers", self.tracker),
        }
        given = {name: of for name, of in named.items() if of[1] is not None}
        lengths = ("training.epochs", "training.images")
        for option, (path, value) in given.items():
            same = lengths if path in lengths else (path,)
            others = [f"--set {one}" for one in settings if one.partition("=")[0] in same]
            if option == "--epochs" and "--images" in given:
                others.append(f"--images {self.images}")
            if others:
                raise InputError(
                    f"{option} {value} and {others[0]} set the same.",
                    hint=f"{option} is short for --set {path}=VALUE; leave one of them out.",
                )
        return [*(f"{path}={value}" for path, value in given.values()), *settings]


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is sampled and measured, beside the model."""

    count: Annotated[int | None, typer.Option(min=10, help="Images for each guidance scale.")] = (
        None
    )
    seed: Seed = 0
    settings: Settings = None
    device: Device = "auto"
    yes: Yes = False

    def overrides(self, **more: object) -> list[str]:
        """The options as `section.key=value`, `more` with dots for double underscores; then what
        was given by --set. Very many images are asked back."""
        from json import dumps

        ask_for_many(self.count, yes=self.yes)
        named = {
            "evaluation__count": self.count,
            "evaluation__first_seed": self.seed or None,
            **more,
        }
        short = [
            f"{name.replace('__', '.')}={dumps(value)}"
            for name, value in named.items()
            if value is not None
        ]
        return [*short, *(self.settings or ())]


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What the studies of guidance and of training share."""

    count: Annotated[
        int | None, typer.Option(min=2, help="Images of each model at each scale.")
    ] = None
    classifier: Annotated[
        str, typer.Option(help="Classifier of the class accuracy: auto, or a run of a classifier.")
    ] = "auto"
    seed: Seed = 0
    out: Annotated[
        Path | None,
        typer.Option(
            callback=checked_folder, help="Folder for results; else in the model's folder."
        ),
    ] = None
    device: Device = "auto"
    yes: Yes = False

    def config(self, schema: type[S], **more: object) -> S:
        """The study's configuration; what is None is left at its default. Very many images are
        asked back."""
        from sfumato.config.overrides import build

        ask_for_many(self.count, yes=self.yes)
        given = {
            "count": self.count,
            "classifier": self.classifier,
            "first_seed": self.seed,
            **more,
        }
        values = {name: value for name, value in given.items() if value is not None}
        return build(schema, values, source="The command")


Command = Callable[..., Any]


def grouped(command: Command) -> Command:
    """`command` with each field of its dataclass parameters as an option: Typer has no groups."""
    signature = inspect.signature(command)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if not is_dataclass(parameter.annotation):
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        flat += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(parameter.annotation)
        ]

    @wraps(command)
    def run(**given: Any) -> Any:
        for name, group in groups.items():
            own = {field.name: given.pop(field.name) for field in fields(group)}
            given[name] = group(**own)
        return command(**given)

    run.__signature__ = signature.replace(parameters=flat)  # pyright: ignore
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


def register(app: typer.Typer, commands: Sequence[tuple[Command, str]]) -> None:
    """Add commands, each with an example, under their own names."""
    for command, example in commands:
        name = command.__name__.removesuffix("_").replace("_", "-")
        app.command(name, epilog=f"Example: `{example}`")(grouped(command))
