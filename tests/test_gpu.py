"""The same numbers on a GPU as on the CPU. Run on a machine with one: `pytest -m gpu`.

SFUMATO_TEST_DEVICE=cpu runs the file without a GPU, which checks the file and nothing else.
"""

import os
from dataclasses import replace

import pytest
import torch

from sfumato.config.schema import ClassifierTrainingConfig, load_experiment
from sfumato.config.sections import ClassifierConfig, OptimizerConfig, TowersConfig
from sfumato.data.loading import Batch
from sfumato.generation.loading import load
from sfumato.methods.clip import ClassData, class_texts
from sfumato.methods.registry import prepare_run
from sfumato.models.classifier import build_classifier
from sfumato.text.tokenizer import train_tokenizer, vocabulary_corpus
from sfumato.text.towers import build_towers
from sfumato.training.loop import Run, train
from sfumato.training.objectives.classifier import ClassifierObjective
from sfumato.training.objectives.clip import ClipObjective
from sfumato.training.step import StepContext

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("SFUMATO_TEST_DEVICE", "cuda")
CPU = torch.device("cpu")
TINY = [
    "data.resolution=16",
    "model.block_out_channels=[16,32]",
    "model.levels=[plain,attention]",
    "training.batch_size=16",
    "training.images=160",
    "training.log_every_images=16",
    "training.checkpoint_every_images=64",
    "training.sample_every_images=100000",
    "sampling.steps=2",
]
FLOW = ["diffusion.process=rectified_flow", "sampling.sampler=Heun"]
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module", autouse=True)
def device() -> torch.device:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.fail("No GPU here: run `pytest -m gpu` on a machine with one.")
    return torch.device(DEVICE)


def diffusion_run(folder, device: str, *settings: str) -> Run:
    return prepare_run(load_experiment("digits", [*TINY, *settings]), folder, device=device)


def relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [[], FLOW, ["diffusion.prediction_type=epsilon", "training.micro_batches=2"]],
    ids=["v", "flow", "eps"],
)
def test_a_diffusion_step_as_on_the_cpu(settings, precision, device, tmp_path) -> None:
    losses = {}
    for name in ("cpu", DEVICE):
        folder = tmp_path / name / str(len(losses))
        run = diffusion_run(folder, name, *settings, f"training.precision={precision}")
        run.objective.step(run.batches.at(0), run.context())
        second = run.objective.step(run.batches.at(16), replace(run.context(), images_seen=16))
        losses[len(losses)] = float(second["loss"])
    assert relative(losses[1], losses[0]) < TOLERANCE[precision]


@pytest.mark.parametrize("compile", ["blocks", "graph"])
def test_a_compiled_step_gives_the_same_loss(compile, device, tmp_path) -> None:
    losses = []
    for number, setting in enumerate(("none", compile)):
        run = diffusion_run(tmp_path / str(number), DEVICE, f"training.compile={setting}")
        for _ in range(3):
            metrics = run.take_step()
        losses.append(metrics["loss"])
    assert relative(losses[1], losses[0]) < TOLERANCE["float32"]


def context(device: torch.device) -> StepContext:
    return StepContext(seed=3, images_seen=0, total_images=999, batch_size=16, device=device)


def random_batch(channels: int, size: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(
            256, (16, channels, size, size), generator=generator, dtype=torch.uint8
        ).to(device),
        labels=torch.arange(16, device=device) % 4,
        prompts=torch.zeros(16, dtype=torch.int64, device=device),
    )


def test_a_classifier_step_as_on_the_cpu(device) -> None:
    losses = []
    for where in (CPU, device):
        network = build_classifier(ClassifierConfig(), channels=3, classes=4, seed=0).to(where)
        objective = ClassifierObjective(network, ClassifierTrainingConfig(shift=2, mirrored=True))
        for _ in range(2):
            found = objective.step(random_batch(3, 32, where), context(where))
        losses.append(float(found["loss"]))
    assert relative(losses[1], losses[0]) < TOLERANCE["float32"]


def test_a_clip_step_as_on_the_cpu(device) -> None:
    captions = [[f"a photo of a {word}", f"one {word}"] for word in ("cat", "dog", "ship", "frog")]
    tokenizer = train_tokenizer(
        vocabulary_corpus([caption for several in captions for caption in several]), vocab_size=320
    )
    data = ClassData(
        images=torch.zeros(0),
        labels=torch.zeros(0),
        class_names=[],
        captions=captions,
        own_captions=[],
        mirrored=torch.tensor([True, False, True, False]),
        apart=torch.tensor([0, 0, 1, 1])[:, None] == torch.tensor([0, 0, 1, 1]),
        description="",
    )
    config = TowersConfig(text_width=32, text_layers=1, text_heads=2, text_mlp=64, positions=8)
    losses = []
    for where in (CPU, device):
        objective = ClipObjective(
            build_towers(config, tokenizer, seed=0).to(where),
            class_texts(data, tokenizer, positions=8),
            optimizer=OptimizerConfig(lr=1e-3),
            captions_per_class=2,
        )
        for _ in range(2):
            found = objective.step(random_batch(3, 32, where), context(where))
        losses.append(float(found["loss"]))
    assert relative(losses[1], losses[0]) < TOLERANCE["float32"]


def test_a_run_that_was_stopped_goes_on_with_the_same_losses(device, tmp_path) -> None:
    """Between two GPU runs, bits differ where cuDNN or atomics choose; losses do not."""
    whole = diffusion_run(tmp_path / "whole", DEVICE)
    losses = [whole.take_step()["loss"] for _ in range(8)]
    first = diffusion_run(tmp_path / "halves", DEVICE)
    for _ in range(4):
        first.take_step()
    first.save()
    second = diffusion_run(tmp_path / "halves", DEVICE)
    assert second.images_seen == 64
    resumed = [second.take_step()["loss"] for _ in range(4)]
    assert resumed == pytest.approx(losses[4:], rel=1e-4)


def test_a_picture_as_on_the_cpu(device) -> None:
    prompts = [f"A handwritten digit {digit}" for digit in range(10)]
    pictures = [
        load("bundled:mnist", device=name).sample(prompts, range(10)).tensor.int()
        for name in ("cpu", DEVICE)
    ]
    assert (pictures[0] - pictures[1]).abs().max() <= 2


def test_a_completed_picture_as_on_the_cpu(device) -> None:
    image, mask = torch.arange(28 * 28).reshape(1, 28, 28).byte(), torch.zeros(1, 28, 28).bool()
    mask[:, 14:] = True
    pictures = [
        load("bundled:mnist", device=name)
        .sample("A handwritten digit 7", range(4), init_image=image, mask=mask, strength=0.8)
        .tensor.int()
        for name in ("cpu", DEVICE)
    ]
    assert (pictures[0] - pictures[1]).abs().max() <= 2
    assert bool((pictures[1][:, :, :14] == image[:, :14]).all())


def test_the_host_never_waits_in_a_step(device, tmp_path) -> None:
    run = diffusion_run(tmp_path, DEVICE, "model.dropout=0.1", "training.mirrored=true")
    for _ in range(3):  # allocations, cuDNN's choice, draws ahead
        run.take_step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        for images_seen in (48, 64, 80):
            batch = run.batches.at(images_seen)
            run.objective.step(batch, replace(run.context(), images_seen=images_seen))
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_a_whole_run_logs_saves_and_samples(device, tmp_path) -> None:
    run = diffusion_run(tmp_path, DEVICE, "training.sample_every_images=80")
    train(run)
    assert run.finished
    assert run.checkpoints.latest().images_seen == 160
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 10
    assert len(list((tmp_path / "samples").iterdir())) == 2
