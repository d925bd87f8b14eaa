"""The life of a run, the same for every method: build, resume, train, finish."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.base.environment import code_digest
from sfumato.base.errors import ConfigError
from sfumato.base.lock import locked
from sfumato.config.overrides import build, parse_yaml
from sfumato.config.schema import Experiment
from sfumato.training.distributed import ALONE, World, open_world
from sfumato.training.folder import check_folder, check_is_run, claim_folder
from sfumato.training.hooks import CheckpointHook, LogHook, cut_back_records, stopping_on_signals
from sfumato.training.images import check_images, digest_of, record_images
from sfumato.training.loop import Hook, Run, train
from sfumato.training.trackers.registry import check_trackers
from sfumato.training.trackers.sending import tracked


@dataclass(frozen=True, kw_only=True)
class Method:
    """What differs between methods of training.

    `resolve`: the experiment with each `auto` made concrete, after the checks that need no images;
    a resolved one is returned as it is. `images`: what it is trained on, as
    `data.records.trained_on` has it; None where that is not recorded. `build`: the run from its
    start, with the hooks that only this method has; its world is `ALONE` unless `distributed`.
    `begin`: writes what the run needs beside its checkpoints into its folder, on rank 0.
    `finish`: writes the result of a finished run where it is missing. `describe`: lines on the
    result. `lint`: warnings about an experiment.
    """

    schema: type[Experiment]
    build: Callable[[Any, Path, torch.device, World], Run]
    finish: Callable[[Any, Any], None]
    describe: Callable[[Any, Any], Sequence[str]]
    resolve: Callable[[Any], Any] = lambda experiment: experiment
    images: Callable[[Any], np.ndarray | None] = lambda experiment: None
    begin: Callable[[Any, Run], None] = lambda experiment, run: None
    lint: Callable[[Any], list[str]] = lambda experiment: []
    distributed: bool = False
    """Whether it can be trained in several processes."""


def prepare(
    method: Method,
    experiment: Any,
    folder: Path,
    *,
    device: torch.device,
    hooks: Sequence[Hook] = (),
    world: World = ALONE,
) -> Run:
    """The run of an experiment in `folder`, resumed where it has a checkpoint.

    An experiment that is refused leaves no folder behind. Rank 0 has the hooks and the folder.
    """
    experiment = method.resolve(experiment)
    if world.is_main:
        check_folder(experiment, folder)  # before images are decoded
    images, changes = method.images(experiment), None
    if images is not None:
        world.agree("images", images=digest_of(images))
        if world.is_main:
            changes = check_images(images, folder, accept=experiment.data.accept_changes)
    run = method.build(experiment, folder, device, world)
    run.world = world
    if world.is_main:
        claim_folder(experiment, folder)
        method.begin(experiment, run)
    run.keep_checkpoints = experiment.training.keep_checkpoints
    run.hooks = _all_hooks(experiment, run, hooks)
    run.resume()
    if world.is_main:
        if images is not None:
            record_images(images, folder, changes, images_seen=run.images_seen)
        cut_back_records(run)
    return run


def _all_hooks(experiment: Any, run: Run, more: Sequence[Hook]) -> list[Hook]:
    """The hooks of this rank, those of the method among them."""
    training = experiment.training
    hooks = [
        LogHook(run.folder / "metrics.jsonl", every_images=training.log_every_images),
        *more,
        *run.hooks,
        CheckpointHook(every_images=training.checkpoint_every_images),
    ]
    if run.world.is_main:
        return hooks
    # Those that use weights, where these are divided among the ranks.
    return [hook for hook in hooks if run.world.shards and hook.needs_weights]


def run_to_end(
    method: Method,
    experiment: Any,
    folder: Path,
    *,
    device: torch.device,
    hooks: Sequence[Hook] = (),
    look: Callable[[Any], Any] = lambda experiment: experiment,
    on_start: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train an experiment to its end, or to a request to stop, and write the result.

    `look` may settle parts of the experiment by a look at its data. `on_start` gets the run before
    its first step. In each of several processes (`open_world`) it is one rank of the run.
    """
    # The ranks meet first: a look at the data may take one of them longer than the others wait.
    with open_world(device) as world, ExitStack() as stack:
        experiment = look(experiment)
        _check_world(method, experiment, world)
        experiment = _resolved(method, experiment, world)
        sharding = getattr(experiment.training, "sharding", "none")
        world = replace(world, shards=world.size > 1 and sharding == "full")
        if world.is_main:  # another rank may have something else at this path
            check_is_run(folder)
            check_trackers(getattr(experiment.training, "trackers", ()))
            stack.enter_context(locked(folder))
        where = world.device(device)
        run = prepare(method, experiment, folder, device=where, hooks=hooks, world=world)
        if world.is_main:
            on_start(run)
            stack.enter_context(tracked(run, experiment))
        if not run.finished:
            with stopping_on_signals(run), fast_convolutions(where):
                train(run)
        if run.finished and world.is_main:
            method.finish(experiment, run)
        world.wait()
    return run


def _check_world(method: Method, experiment: Any, world: World) -> None:
    """`ConfigError` for a method of one process, `DistributedError` for ranks that differ."""
    if world.size > 1 and not method.distributed:
        raise ConfigError(
            f"{experiment.name} is trained in one process, not in {world.size}.",
            hint="Start it without torchrun and without --processes.",
        )
    if world.size == 1:
        return
    world.wait()  # one that fails in its look at the data ends the others
    asked = experiment.model_dump(mode="json")
    if asked.get("origin"):  # a rank that sees the folder of the run has this from there
        asked["origin"].pop("weights_sha256")
    world.agree(
        "start",
        configuration=hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16],
        code=code_digest(),
        torch=torch.__version__,
    )


def _resolved(method: Method, experiment: Any, world: World) -> Any:
    """As rank 0 resolves it: it alone opens the model that the run begins with."""
    if world.is_main:
        experiment = method.resolve(experiment)
    if world.size == 1:
        return experiment
    text = world.exchange("experiment", experiment.to_yaml() if world.is_main else "")[0]
    return build(method.schema, parse_yaml(text, "rank 0"), source="rank 0")


@contextmanager
def fast_convolutions(device: torch.device) -> Iterator[None]:
    """cuDNN measures its algorithms once for each shape and takes the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
