"""Commands of `sfumato`. No arithmetic here: parse, call, print."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from sfumato import __version__
from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.memory import collection_paused, keep_freed_memory
from sfumato.cli.app_bench import bench_app
from sfumato.cli.app_data import data_app
from sfumato.cli.options import (
    GOES_ON,
    INTERRUPTED,
    Device,
    Form,
    Forms,
    Guidance,
    Model,
    SamplerName,
    Scales,
    Seed,
    Settings,
    Steps,
    stoppable,
)

app = typer.Typer(
    name="sfumato",
    help="Train text-to-image diffusion models from scratch.",
    epilog="Start with `sfumato demo`. Add --debug to any command for a traceback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
presets_app = typer.Typer(help="List the presets, or show one in full.", no_args_is_help=True)
app.add_typer(presets_app, name="presets")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"sfumato {__version__}")
        raise typer.Exit


@app.command(epilog="Example: `sfumato demo --out runs/demo`")
def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again in a new folder.")] = False,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Train on real handwritten digits, draw them from captions, measure, write a report."""
    from sfumato.cli.demo import run_demo
    from sfumato.cli.evaluation import ImagesLine, print_card
    from sfumato.cli.show import Progress, say, say_start

    result = run_demo(
        out,
        fresh=fresh,
        overrides=settings or [],
        device=device,
        say=say,
        progress=Progress(),
        on_start=say_start,
        on_images=ImagesLine(),
    )
    if result is None:
        say("\nStopped and saved. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    print_card(result.card)
    say(f"\nGrid    {result.grid}\nReport  {result.report}")


@app.command(epilog="Example: `sfumato train small --data my-photos --out runs/mine`")
def train(
    preset: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")],
    dataset: Annotated[
        str | None, typer.Argument(help="A folder of images, a Hub name OWNER/NAME, or digits.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The same as the second argument.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; started again on it, a run goes on.")
    ] = None,
    settings: Settings = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what is warned of.")] = False,
    device: Device = "auto",
) -> None:
    """Train a preset. Interrupted and started again with the same --out, it goes on exactly."""
    from sfumato.cli.data import look_at_data
    from sfumato.cli.demo import new_folder
    from sfumato.cli.show import Progress, say, train_and_report
    from sfumato.config.schema import ClassifierExperiment, DiffusionExperiment, load_experiment
    from sfumato.methods.diffusion import network_line
    from sfumato.methods.registry import method_of
    from sfumato.text.opening import fetch
    from sfumato.training.lint import tell

    if dataset is not None and data is not None:
        raise InputError(
            f"The data set is given twice: '{dataset}' and --data '{data}'.",
            hint="Leave one of them out.",
        )
    source = dataset if data is None else data
    chosen = [] if source is None else [f"data.source={json.dumps(source)}"]
    experiment = load_experiment(preset, [*chosen, *(settings or [])])
    if isinstance(experiment, DiffusionExperiment):
        fetch(experiment.text.encoder)
    if isinstance(experiment, DiffusionExperiment | ClassifierExperiment):
        experiment = look_at_data(experiment)
    tell(method_of(experiment).lint(experiment), strict=strict)
    folder = out or new_folder(Path("runs") / experiment.name)
    say(f"{experiment.name}: {experiment.about}")
    if isinstance(experiment, DiffusionExperiment):
        say(network_line(experiment))
    say(f"Run folder {folder}")
    with stoppable(
        f"Stopped. The same command with --out {folder} goes on from its last "
        "checkpoint, or begins."
    ):
        run = train_and_report(experiment, folder, device=device, progress=Progress())
    if not run.finished:
        raise typer.Exit(INTERRUPTED)


@app.command(
    epilog='Example: `sfumato sample runs/demo "A handwritten digit 7" --count 4 --guidance 3`'
)
def sample(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="Prompts, each in quotes.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("samples"),
    count: Annotated[int, typer.Option(help="Images for each prompt.")] = 1,
    guidance: Guidance = None,
    form: Form = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw images from prompts. Each PNG carries its settings; see `sfumato inspect`."""
    with collection_paused(freeze=True):  # imports take longer than to draw one picture
        from sfumato.cli.show import draw_to_files, open_generator

    generator = open_generator(
        model, device=device, scheduler=sampler, guidance=guidance, form=form, steps=steps
    )
    draw_to_files(generator, prompts, count=count, seed=seed, out=out)


@app.command(
    epilog="Example: `sfumato grid runs/demo --scales 3,8 --guidance-form cfg --guidance-form apg`"
)
def grid(
    model: Model,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; without any, the data set's captions.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("grid.png"),
    scales: Scales = None,
    forms: Forms = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw one picture: guidance as rows, prompts as columns, the same seed in a column."""
    with collection_paused(freeze=True):
        from sfumato.cli.show import open_generator, parse_forms, parse_scales, write_grid

    generator = open_generator(model, device=device, scheduler=sampler, steps=steps)
    write_grid(
        generator,
        prompts or [],
        scales=parse_scales(scales),
        forms=parse_forms(forms),
        seed=seed,
        out=out,
    )


@app.command(epilog="Example: `sfumato evaluate runs/demo --count 500`")
def evaluate(
    what: Annotated[
        Path,
        typer.Argument(help="A run, a pipeline, bundled:mnist, a folder of images or an .npz."),
    ],
    count: Annotated[int | None, typer.Option(help="Images for each guidance scale.")] = None,
    scales: Scales = None,
    form: Form = None,
    seed: Seed = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Ask by captions that were never trained on.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="The real images to compare with; a model knows them."),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Judge by an untrained network: the paper's setup.")
    ] = False,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for card.json and pictures; else with the model.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure images against real ones: every metric with its interval, floor and provenance.

    Interrupted and started again, it goes on. --set takes `evaluation.*`, `sampling.*` and `data.*`
    (docs/evaluation.md).
    """
    from sfumato.cli.evaluation import evaluate_and_print, overrides

    chosen = overrides(
        settings,
        count=count,
        scales=scales,
        data=data,
        untrained=untrained,
    )
    with stoppable(GOES_ON):
        evaluate_and_print(
            what,
            settings=chosen,
            form=form,
            seed=seed,
            held_out=held_out,
            out=out,
            device=device,
        )


@app.command(epilog="Example: `sfumato table1 runs/cifar10-tiny --sampler DDPM --steps 50`")
def table1(
    model: Annotated[Path, typer.Argument(help="A run, a pipeline or bundled:mnist.")],
    count: Annotated[int, typer.Option(help="Images for each guidance scale.")] = 1000,
    scales: Scales = "0,2,5,10",
    form: Form = None,
    sampler: SamplerName = None,
    steps: Steps = None,
    seed: Seed = 0,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the model's real images are now.")
    ] = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the card and the table; else with the model.")
    ] = None,
    device: Device = "auto",
) -> None:
    """The paper's Table 1 by its own protocol, and by one with intervals, floor and trained judge.

    The same images are measured by both. Interrupted and started again, it goes on.
    """
    from sfumato.cli.evaluation import overrides
    from sfumato.cli.table1 import table1_and_print

    drawn = {"sampling.scheduler": sampler, "sampling.steps": steps}
    chosen = [f"{name}={value}" for name, value in drawn.items() if value is not None]
    chosen += overrides(settings, count=count, scales=scales, data=data, untrained=False)
    with stoppable(GOES_ON):
        table1_and_print(model, settings=chosen, form=form, seed=seed, out=out, device=device)


@app.command(epilog="Example: `sfumato compare runs/demo@1 runs/demo@3 --count 500`")
def compare(
    first: Annotated[
        str,
        typer.Argument(help="A run, a pipeline, bundled:mnist, an evaluation; PATH@3: w = 3."),
    ],
    second: Annotated[str, typer.Argument(help="What it is compared with.")],
    count: Annotated[int | None, typer.Option(help="Images of each model.")] = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Ask by captions that were never trained on.")
    ] = False,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="A new folder for the page.")] = Path("comparison"),
    device: Device = "auto",
) -> None:
    """Two models on the same seeds and captions: paired tests and one page, side by side."""
    from sfumato.cli.evaluation import compare_and_print, overrides

    chosen = overrides(settings, count=count, scales=None, data=None, untrained=False)
    compare_and_print(
        (first, second),
        settings=chosen,
        guidance=guidance,
        seed=seed,
        held_out=held_out,
        out=out,
        device=device,
    )


@app.command(epilog="Example: `sfumato figures runs/mnist`")
def figures(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the PNGs; else RUN/figures.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; 422 is the paper's.")] = 422,
    like: Annotated[
        str | None,
        typer.Option(help="mnist (figures 1-7) or cifar10 (8-13); else by the images' colour."),
    ] = None,
    form: Form = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    device: Device = "auto",
) -> None:
    """The paper's figures from a run, 1 to 7 of MNIST or 8 to 13 of CIFAR-10: PNGs and one page."""
    from sfumato.cli.show import open_generator, say
    from sfumato.paper.figures import write_figures

    generator = open_generator(run, device=device, scheduler=sampler, form=form, steps=steps)
    page = write_figures(
        generator,
        out or Path(run) / "figures",
        like=like,
        seed=seed,
        on_figure=lambda path: say(str(path)),
    )
    say(f"Page    {page}")


@app.command(epilog="Example: `sfumato findings runs/mnist runs/mnist-fast`")
def findings(
    without: Annotated[str, typer.Argument(help="A run without caption dropout, as the paper's.")],
    with_dropout: Annotated[
        str | None, typer.Argument(help="A run with it, of the same data.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images of each model at each scale.")] = 500,
    scales: Scales = None,
    judge: Annotated[
        str, typer.Option(help="Who reads the digits: auto, or a run of a classifier.")
    ] = "auto",
    seed: Seed = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for findings.json and pictures; else RUN/findings.")
    ] = None,
    device: Device = "auto",
) -> None:
    """The paper's findings on guidance, tested: each held, not held, or not decidable here.

    Interrupted and started again, it goes on. Without --sampler and --steps each run draws with
    its own.
    """
    from sfumato.cli.findings import find_and_print

    with stoppable(GOES_ON):
        find_and_print(
            without,
            with_dropout,
            count=count,
            scales=scales,
            judge=judge,
            seed=seed,
            sampler=sampler,
            steps=steps,
            out=out,
            device=device,
        )


@app.command(epilog="Example: `sfumato guidance runs/cifar10-tiny --scales 0,2,5,10 --count 500`")
def guidance(
    run: Model,
    forms: Forms = None,
    scales: Scales = None,
    count: Annotated[int, typer.Option(help="Images of each form at each scale.")] = 1000,
    judge: Annotated[
        str, typer.Option(help="Who reads the classes: auto, or a run of a classifier.")
    ] = "auto",
    seed: Seed = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the model's real images are now.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for guidance.json and pictures; else RUN/guidance.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Forms of guidance side by side: adherence, distance, diversity, burnt pixels; a choice.

    The paper's claims on guidance scales (section 3.3.7) are decided where w = 0, 2, 5 and 10 are
    among them. Interrupted and started again, it goes on.
    """
    from sfumato.cli.forms import compare_and_print

    with stoppable(GOES_ON):
        compare_and_print(
            run,
            forms=forms,
            scales=scales,
            count=count,
            judge=judge,
            seed=seed,
            sampler=sampler,
            steps=steps,
            data=data,
            out=out,
            device=device,
        )


@app.command(epilog="Example: `sfumato curve runs/cifar10-tiny --guidance 2`")
def curve(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    guidance: Guidance = None,
    form: Form = None,
    count: Annotated[int, typer.Option(help="Images of each checkpoint.")] = 500,
    judge: Annotated[
        str, typer.Option(help="Who reads the classes: auto, or a run of a classifier.")
    ] = "auto",
    seed: Seed = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the run's real images are now.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for curve.json and pictures; else RUN/curve.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Quality over training: agreement, distance and diversity of every kept checkpoint.

    All draw the same seeds and captions. Interrupted and started again, it goes on.
    """
    from sfumato.cli.curve import curve_and_print

    with stoppable(GOES_ON):
        curve_and_print(
            run,
            guidance=guidance,
            form=form,
            count=count,
            judge=judge,
            seed=seed,
            sampler=sampler,
            steps=steps,
            data=data,
            out=out,
            device=device,
        )


@app.command(epilog="Example: `sfumato export runs/demo --out my-model`")
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    guidance: Guidance = None,
    form: Form = None,
    steps: Steps = None,
    sampler: SamplerName = None,
) -> None:
    """Write a diffusers folder that draws with or without sfumato; no pickle."""
    from sfumato.cli.show import check_is_empty, open_generator, say_how_to_load

    check_is_empty(out)
    generator = open_generator(
        model, device="cpu", scheduler=sampler, guidance=guidance, form=form, steps=steps
    )
    generator.export(out)
    say_how_to_load(out)


@app.command(epilog="Example: `sfumato tune runs/demo --scales 1,1.5,2,3 --calls 20`")
def tune(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    goal: Annotated[
        str,
        typer.Option(
            "--for",
            help="agreement, frechet, or front: the least distance among those that agree enough.",
        ),
    ] = "front",
    at_least: Annotated[
        float | None,
        typer.Option(help="Agreement that a `front` choice must reach; else 0.01 below the best."),
    ] = None,
    scales: Scales = "1,1.25,1.5,2,3,5",
    forms: Forms = None,
    samplers: Annotated[
        list[str] | None, typer.Option("--sampler", help="Samplers to try; may be repeated.")
    ] = None,
    calls: Annotated[
        int | None, typer.Option(help="Most network evaluations an image; else as the run's own.")
    ] = None,
    averages: Annotated[
        bool, typer.Option("--averages", help="Try every average that the run has kept.")
    ] = False,
    budget: Annotated[int, typer.Option(help="Images to draw in all.")] = 4000,
    judge: Annotated[str, typer.Option(help="Who reads the classes, as evaluation.classifier.")] = "",
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the run's real images are now.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Find the guidance to draw with, and write it into the run."""
    from sfumato.cli.tuning import tune_and_print

    tune_and_print(
        run,
        goal=goal,
        at_least=at_least,
        scales=scales,
        forms=forms,
        samplers=samplers,
        calls=calls,
        averages=averages,
        budget=budget,
        judge=judge,
        data=data,
        device=device,
    )


@app.command(epilog="Example: `sfumato ablate digits --out runs/ablation`")
def ablate(
    ablation: Annotated[str, typer.Argument(help="An ablation's name, or its YAML file.")],
    dataset: Annotated[
        str | None, typer.Argument(help="Another source of images than the preset's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; started again on it, they go on.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Arms to train now; may be repeated.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Seeds to train now; may be repeated.")
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Which setting does what: arms of several seeds on equal images, judged while they train."""
    from sfumato.cli.ablation import ablate_and_print

    source = [] if dataset is None else [f"data.source={json.dumps(dataset)}"]
    finished = ablate_and_print(
        ablation,
        [*source, *(settings or [])],
        out=out,
        only=only or [],
        seeds=seeds or [],
        device=device,
    )
    if not finished:
        raise typer.Exit(INTERRUPTED)


@app.command(epilog="Example: `sfumato bundle runs/mnist --out mnist --source ylecun/mnist`")
def bundle(
    model: Annotated[str, typer.Argument(help="A run folder; a bundle, to renew its figures.")],
    out: Annotated[Path | None, typer.Option(help="Of a run: a new or empty folder.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Where others find the data: a Hub name OWNER/NAME.")
    ] = None,
    note: Annotated[str, typer.Option(help="A sentence on the data, for the model card.")] = "",
    cards: Annotated[
        list[Path] | None,
        typer.Option("--card", metavar="FOLDER", help="An evaluation of it; may be repeated."),
    ] = None,
) -> None:
    """Write a run as a model that sfumato can carry: rounded to float16, hashed, with its card.

    Then `sfumato evaluate OUT`, and `sfumato bundle OUT --card OUT-evaluation` shows the figures.
    """
    from sfumato.cli.bundle import bundle_run, renew_figures

    if out is None:
        renew_figures(model, cards or [], of_the_run={"--source": source, "--note": note})
    else:
        bundle_run(model, out, cards or [], source=source, note=note)


@app.command(epilog="Example: `sfumato inspect samples/a-handwritten-digit-7-w3-seed0.png`")
def inspect(
    file: Annotated[Path, typer.Argument(help="A PNG that sfumato drew.")],
) -> None:
    """Print the settings that a PNG carries: prompt, seed, guidance, sampler, checkpoint."""
    from sfumato.cli.show import print_settings

    print_settings(file)


@app.command(epilog="Example: `sfumato prepare wikiart wikiart-128 --set data.label_column=style`")
def prepare(
    source: Annotated[str, typer.Argument(help="A folder, a Hub name OWNER/NAME, or digits.")],
    out: Annotated[Path, typer.Argument(help="A new folder, or one to go on with.")],
    resolution: Annotated[int, typer.Option(help="Height and width in pixels.")] = 128,
    settings: Settings = None,
) -> None:
    """Decode and resize a data set once, so that training never waits for it. Killed, the same
    command goes on; the folder is a source: `--data OUT`."""
    from sfumato.cli.data import prepare_data

    prepare_data(source, out, settings or [], resolution=resolution)


@presets_app.command("list")
def presets_list() -> None:
    """The presets with their parameter counts."""
    from sfumato.cli.show import print_presets

    print_presets()


@presets_app.command("show")
def presets_show(
    preset: Annotated[str, typer.Argument(help="A preset's name or a YAML file.")],
    settings: Settings = None,
) -> None:
    """A preset with every setting resolved: the start of a YAML file of your own."""
    from sfumato.config.schema import load_experiment

    typer.echo(load_experiment(preset, settings or []).to_yaml(), nl=False)


def main() -> None:
    """Run the command line: one clear message and an exit code instead of a traceback."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    warnings.showwarning = _show_warning
    keep_freed_memory()
    if not debug:
        _quiet_libraries()
    try:
        app(args=arguments, standalone_mode=True)
    except SfumatoError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error.what}\n")
        if error.hint:
            sys.stderr.write(f"  -> {error.hint}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n  -> Add --debug to the command for the traceback.\n")
        sys.exit(2)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Warnings of sfumato as a line for people; those of libraries are for --debug."""
    if category.__module__.startswith("sfumato") or "--debug" in sys.argv:
        sys.stderr.write(f"warning: {message}\n")


def _quiet_libraries() -> None:
    """Progress bars and notes of the model libraries would drown our own lines."""
    import os

    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
