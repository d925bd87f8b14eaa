"""The command line: registers the commands, and turns errors into messages and exit codes."""

import os
import sys
import warnings
from typing import Annotated

import typer

from sfumato import __version__
from sfumato.base.environment import set_command
from sfumato.base.errors import SfumatoError
from sfumato.base.memory import keep_freed_memory
from sfumato.base.terminal import print_anything
from sfumato.cli.ablate import ablate
from sfumato.cli.bench import bench_app
from sfumato.cli.bundle import bundle
from sfumato.cli.compare import compare
from sfumato.cli.curve import curve
from sfumato.cli.data import data_app, prepare
from sfumato.cli.demo import demo
from sfumato.cli.distil import distil
from sfumato.cli.doctor import doctor
from sfumato.cli.evaluate import evaluate
from sfumato.cli.evolve import evolve
from sfumato.cli.export import export
from sfumato.cli.figures import figures
from sfumato.cli.findings import findings
from sfumato.cli.grid import grid
from sfumato.cli.guidance import guidance
from sfumato.cli.inspect import inspect
from sfumato.cli.jobs import jobs
from sfumato.cli.nfe import nfe
from sfumato.cli.options import register
from sfumato.cli.paper import paper_app
from sfumato.cli.presets import presets_app
from sfumato.cli.runs import runs
from sfumato.cli.sample import sample
from sfumato.cli.studio import studio
from sfumato.cli.submit import submit_app
from sfumato.cli.survey import survey_app
from sfumato.cli.table1 import table1
from sfumato.cli.train import train
from sfumato.cli.tune import tune
from sfumato.cli.watch import watch

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
register(
    app,
    [
        (demo, "sfumato demo --out runs/demo"),
        (train, "sfumato train small --data my-photos --out runs/mine"),
        (sample, 'sfumato sample runs/demo "A handwritten digit 7" --count 4 --guidance 3'),
        (evolve, 'sfumato evolve bundled:mnist "A handwritten digit 7" --picks "3 7 12"'),
        (studio, "sfumato studio runs/demo bundled:mnist-1"),
        (
            grid,
            "sfumato grid runs/demo --scales 3,8 --guidance-form cfg --guidance-form apg",
        ),
        (runs, "sfumato runs"),
        (jobs, "sfumato jobs"),
        (watch, "sfumato watch runs/a runs/b"),
        (evaluate, "sfumato evaluate runs/demo --count 500"),
        (table1, "sfumato table1 runs/cifar10-tiny --sampler DDPM --steps 50"),
        (compare, "sfumato compare runs/demo@1 runs/demo@3 --count 500"),
        (figures, "sfumato figures runs/mnist"),
        (findings, "sfumato findings runs/mnist runs/mnist-fast"),
        (guidance, "sfumato guidance runs/cifar10-tiny --scales 0,2,5,10 --count 500"),
        (curve, "sfumato curve runs/cifar10-tiny --guidance 2"),
        (export, "sfumato export runs/demo --out my-model"),
        (nfe, "sfumato nfe runs/demo runs/students/nfe-4 --nfe 1,2,4,10,20"),
        (distil, "sfumato distil bundled:mnist --data my-mnist --nfe 4,2,1 --out runs/students"),
        (tune, "sfumato tune runs/demo --scales 1,1.5,2,3 --nfe 20"),
        (ablate, "sfumato ablate digits --out runs/ablation"),
        (bundle, "sfumato bundle runs/mnist --out mnist --source ylecun/mnist"),
        (inspect, "sfumato inspect samples/a-handwritten-digit-7-w3-seed0.png"),
        (doctor, "sfumato doctor"),
        (prepare, "sfumato prepare wikiart wikiart-128 --set data.label_column=style"),
    ],
)
app.add_typer(presets_app, name="presets")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(paper_app, name="paper")
app.add_typer(submit_app, name="submit")
app.add_typer(survey_app, name="survey")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"sfumato {__version__}")
        raise typer.Exit


QUIET_LIBRARIES = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
"""No progress bars and notes of the model libraries among our own lines."""


def main() -> None:
    """Run the command line: one clear message and an exit code instead of a traceback."""
    try:
        _run()
    except SystemExit as end:
        if isinstance(end.code, int) and os.environ.get("WORLD_SIZE", "1") != "1":
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    """End one of several ranks without the interpreter's own end, in which threads of gloo that
    still run now and then abort a process that has done all of its work."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run() -> None:
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    set_command(["sfumato", *arguments])
    warnings.showwarning = _show_warning
    keep_freed_memory()
    print_anything()
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # rank 0 speaks for all; errors are each rank's own
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        warnings.simplefilter("ignore")
    if not debug:
        for name, value in QUIET_LIBRARIES.items():
            os.environ.setdefault(name, value)
    try:
        app(args=arguments, standalone_mode=True)
    except SfumatoError as error:
        if debug:
            raise
        who = "" if rank == "0" else f" on rank {rank}"
        sys.stderr.write(f"error{who}: {error.what}\n")
        if error.hint:
            sys.stderr.write(f"  -> {error.hint}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n  -> Add --debug to the command for the traceback.\n")
        sys.exit(2)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Warnings of sfumato as one line; those of libraries with --debug only."""
    if category.__module__.startswith("sfumato") or "--debug" in sys.argv:
        sys.stderr.write(f"warning: {message}\n")
