"""A creative adversarial network: losses in closed form, networks, an exact resume."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import read_json, write_json
from sfumato.base.images import to_float, to_uint8
from sfumato.config.adversarial import CanNetworkConfig
from sfumato.config.overrides import build
from sfumato.config.schema import CanExperiment, load_experiment
from sfumato.config.sections import DataConfig, TextConfig
from sfumato.data.records import load_records
from sfumato.generation.can import ClassReader, caption_means, prompts_of_classes
from sfumato.generation.loading import load
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.models.can import build_can
from sfumato.text.opening import load_text_encoder
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.loop import Run, train
from sfumato.training.objectives.can import (
    ambiguity,
    diff_augment,
    discriminator_loss,
    generator_loss,
)
from sfumato.training.records import read_records

SETTINGS = {
    "name": "tiny",
    "method": "can",
    "data": {"source": "digits", "resolution": 8, "channels": 1, "caption": "{label}"},
    "network": {
        "latent": 6,
        "generator_channels": [8],
        "discriminator_channels": [8],
        "style_hidden": [8],
    },
    "training": {
        "batch_size": 16,
        "images": 96,
        "optimizer": {"lr": 1e-3, "betas": [0.5, 0.999], "weight_decay": 0},
        "discriminator_optimizer": {"lr": 1e-3, "betas": [0.5, 0.999], "weight_decay": 0},
        "averaging": {"halflife_images": 50},
        "log_every_images": 16,
        "sample_every_images": 48,
        "checkpoint_every_images": 48,
    },
}
VARIANTS = {
    "stable": {
        "loss": "hinge",
        "r1": 1.0,
        "diff_augment": ["brightness", "translation", "cutout"],
        "network.conditional": True,
        "mirrored": True,
    },
    "captions": {
        "network.conditional": True,
        "network.condition": "caption",
        "data.caption": ["digit {label}", "the number {word}"],
    },
    "paper": {
        "ambiguity": "binary",
        "network.upsampling": "transposed",
        "network.spectral_norm": False,
    },
}


def tiny(**changes) -> CanExperiment:
    values = json.loads(json.dumps(SETTINGS))
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        values[section or "training"][key] = value
    return build(CanExperiment, values, source="test")


def logits(seed: int, *shape: int, size: float = 2.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


# Losses -------------------------------------------------------------------------------------------


def test_losses_in_closed_form() -> None:
    real, fake = logits(0, 50), logits(1, 50)
    r, f = real.double().numpy(), fake.double().numpy()
    wanted = {
        "non_saturating": (
            -np.log(1 / (1 + np.exp(-r))).mean() - np.log(1 - 1 / (1 + np.exp(-f))).mean(),
            -np.log(1 / (1 + np.exp(-f))).mean(),
        ),
        "hinge": (np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(), -f.mean()),
    }
    for kind, (judged, made) in wanted.items():
        assert float(discriminator_loss(real, fake, kind)) == pytest.approx(judged, abs=1e-6)
        assert float(generator_loss(fake, kind)) == pytest.approx(made, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 25])
def test_ambiguity_in_closed_form(classes: int) -> None:
    """As it is printed, with p = softmax, in numpy."""
    given = logits(2, 40, classes)
    exp = np.exp(given.double().numpy())
    p = exp / exp.sum(1, keepdims=True)
    uniform = -np.log(p).mean()
    binary = -(np.log(p) / classes + (1 - 1 / classes) * np.log(1 - p)).sum(1).mean()
    assert float(ambiguity(given, "uniform")) == pytest.approx(uniform, abs=1e-6)
    assert float(ambiguity(given.double(), "binary")) == pytest.approx(binary, abs=1e-9)
    assert float(ambiguity(given, "binary")) == pytest.approx(binary, rel=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "binary"])
def test_ambiguity_is_least_where_all_are_equal(kind: str) -> None:
    classes = 10
    equal = torch.zeros(3, classes, dtype=torch.float64, requires_grad=True)
    share = 1 / classes
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    least = {"uniform": np.log(classes), "binary": classes * entropy}[kind]
    found = ambiguity(equal, kind)
    assert float(found.detach()) == pytest.approx(least, abs=1e-12)
    (slope,) = torch.autograd.grad(found, equal)
    assert float(slope.abs().max()) < 1e-12
    assert float(ambiguity(logits(3, 3, classes).double(), kind)) > least


@pytest.mark.parametrize("gap", [20.0, 200.0])
def test_gradients_at_a_peaked_head(gap: float) -> None:
    """One style is certain and log(1 - p) has overflown: the slopes in closed form."""
    classes = 5
    peaked = torch.zeros(1, classes)
    peaked[0, 2] = gap
    wanted = peaked.double().softmax(1) - 1 / classes
    for kind in ("uniform", "binary"):
        given = peaked.clone().requires_grad_()
        (slope,) = torch.autograd.grad(ambiguity(given, kind), given)
        assert bool(slope.isfinite().all())
        if kind == "uniform":
            torch.testing.assert_close(slope.double(), wanted, atol=1e-6, rtol=0)
            continue
        # d/dm of -(q logsigmoid(m) + (1 - q) logsigmoid(-m)) is sigmoid(m) - q; dm/dlogits: 1 at
        # its own, minus the softmax of the others elsewhere.
        p, expected = peaked.double().softmax(1)[0].numpy(), np.zeros(classes)
        for k in range(classes):
            others = np.exp(peaked[0].double().numpy() - gap * (k != 2))
            others[k] = 0
            moved = -others / others.sum()
            moved[k] = 1
            expected += (p[k] - 1 / classes) * moved
        np.testing.assert_allclose(slope[0].double().numpy(), expected, atol=1e-5)
    naive = (1 - peaked.softmax(1)).log()
    assert bool(naive.isinf().any())


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("upsampling", ["resize", "transposed"])
def test_sizes(levels: int, upsampling: str) -> None:
    config = CanNetworkConfig(
        latent=4,
        generator_channels=(4,) * levels,
        discriminator_channels=(4,) * levels,
        style_hidden=(6,),
        upsampling=upsampling,
        conditional=levels == 4,
    )
    before = torch.random.get_rng_state()
    generator, discriminator = build_can(config, channels=3, classes=7, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    labels = torch.tensor([1, 6])
    images = generator(torch.randn(2, 4), labels)
    assert images.shape == (2, 3, config.resolution, config.resolution)
    assert config.resolution == 2 ** (levels + 2)
    real, styles = discriminator(images, labels)
    assert (real.shape, styles.shape) == ((2,), (2, 7))


def test_a_class_does_not_drown_z() -> None:
    """At first images of one class differ more than classes do: else they would become one; and
    what the discriminator says of the class is no larger than what else it says."""
    config = CanNetworkConfig(
        generator_channels=(32, 16),
        discriminator_channels=(16, 32),
        spectral_norm=False,
        conditional=True,
    )
    generator, discriminator = build_can(config, channels=1, classes=10, seed=0)
    with torch.no_grad():
        z = torch.randn(500, config.latent, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(500) % 10
        images = generator(z, labels).unflatten(0, (50, 10))
        logits, _ = discriminator(images.flatten(0, 1), labels)
    assert images.var(0).mean() > 10 * images.mean(0).var(0).mean()
    assert logits.abs().max() < 2


def test_diff_augment() -> None:
    """Translation moves, cutout takes a square out, and gradients pass."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    moved = diff_augment(images, ("translation",), torch.Generator().manual_seed(1))
    for image, one in zip(images, moved, strict=True):
        shifts = [
            F.pad(image, (2, 2, 2, 2))[:, y : y + 16, x : x + 16]
            for y in range(5)
            for x in range(5)
        ]
        assert any(torch.equal(one, shifted) for shifted in shifts)
    cut = diff_augment(images, ("cutout",), torch.Generator().manual_seed(1))
    assert bool(((cut == images) | (cut == 0)).all())
    assert 0 < float((cut == 0).double().mean()) <= 0.25
    given = images.clone().requires_grad_()
    changed = diff_augment(
        given, ("brightness", "translation", "cutout"), torch.Generator().manual_seed(1)
    )
    (slope,) = torch.autograd.grad(changed.sum(), given)
    assert float(slope.abs().sum()) > 0


# Training -----------------------------------------------------------------------------------------


def test_a_step_in_a_second_implementation(tmp_path: Path) -> None:
    """The discriminator's loss with R1 by a loop over images; styles of real images alone."""
    run = prepare_run(tiny(r1=2.0, loss="hinge"), tmp_path / "run", device="cpu")
    objective, context = run.objective, run.context()
    generator = copy.deepcopy(objective.generator)
    discriminator = copy.deepcopy(objective.discriminator)
    batch = run.batches.at(0)
    metrics = objective.step(batch, context)
    z = torch.randn(16, 6, generator=context.generator("latents of the discriminator"))
    real = to_float(batch.images, (-1.0, 1.0)).requires_grad_()
    logit, styles = discriminator(real)
    fake, _ = discriminator(generator(z))
    penalty = 0.0
    for place in range(16):
        (slope,) = torch.autograd.grad(logit[place], real, retain_graph=True)
        penalty += float(slope[place].square().sum()) / 16
    style = F.cross_entropy(styles, batch.labels)
    wanted = F.relu(1 - logit).mean() + F.relu(1 + fake).mean() + style + 2.0 / 2 * penalty
    assert float(metrics["discriminator_loss"]) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(metrics["style_loss"]) == pytest.approx(float(style.detach()), rel=1e-6)


def test_each_step_changes_its_own_network(tmp_path: Path) -> None:
    run = prepare_run(tiny(), tmp_path / "run", device="cpu")
    objective = run.objective
    before = [
        copy.deepcopy(one.state_dict()) for one in (objective.generator, objective.discriminator)
    ]
    objective._generator_step(run.context())
    assert _changed(before[1], objective.discriminator, weights_only=True) == 0
    assert _changed(before[0], objective.generator, weights_only=True) > 0
    middle = copy.deepcopy(objective.generator.state_dict())
    objective._discriminator_step(run.batches.at(0), run.context())
    assert _changed(middle, objective.generator, weights_only=True) == 0
    assert _changed(before[1], objective.discriminator, weights_only=True) > 0


def _changed(before: dict, network: torch.nn.Module, *, weights_only: bool) -> int:
    names = [name for name, _ in network.named_parameters()] if weights_only else list(before)
    now = network.state_dict()
    return sum(not torch.equal(before[name], now[name]) for name in names)


class StopAt:
    """Asks the run to stop after so many images."""

    needs_weights = False

    def __init__(self, images: int) -> None:
        self.images = images

    def after_step(self, run, metrics) -> None:
        run.stop_requested = run.images_seen >= self.images

    def at_end(self, run) -> None: ...
    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None: ...


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_started_again_equals_unbroken(variant: str, tmp_path: Path) -> None:
    experiment = tiny(**VARIANTS[variant])
    whole = run_experiment(experiment, tmp_path / "whole", device="cpu")
    broken = prepare_run(experiment, tmp_path / "broken", device="cpu", hooks=[StopAt(32)])
    train(broken)
    assert broken.images_seen == 32
    again = run_experiment(experiment, tmp_path / "broken", device="cpu")
    assert whole.finished
    assert again.finished
    for name in whole.objective.parts():
        files = [
            Checkpoints(tmp_path / folder / "checkpoints").latest().verify(name).read_bytes()
            for folder in ("whole", "broken")
        ]
        assert files[0] == files[1], name
    lines = read_records(tmp_path / "whole" / "metrics.jsonl")
    watched = [line for line in lines if "recall" in line]
    assert [line["images"] for line in watched] == [48, 96]  # at the grids of samples
    assert all(line["pairwise_distance"] > 0 and 0 <= line["recall"] <= 1 for line in watched)
    for file in ("metrics.jsonl", "can/generator.safetensors", "samples/images-000000096.png"):
        same = [(tmp_path / folder / file).read_bytes() for folder in ("whole", "broken")]
        assert same[0] == same[1], file


@pytest.mark.parametrize("conditional", [False, True])
def test_the_result_is_the_average(conditional: bool, tmp_path: Path, refused) -> None:
    experiment = tiny(**{"network.conditional": conditional})
    run = run_experiment(experiment, tmp_path / "run", device="cpu")
    model = load(tmp_path / "run", device="cpu")
    seeds = [*range(20)]
    samples = model.sample(seeds=seeds)
    z = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    wanted = run.objective.average.module(torch.stack(z), torch.tensor(seeds) % 10)
    torch.testing.assert_close(samples.x0, wanted, atol=1e-6, rtol=0)
    assert samples.nfe == 1
    assert torch.equal(samples.tensor, to_uint8(samples.x0, (-1.0, 1.0)))
    alone = model.sample(seeds=17)
    assert torch.equal(alone.x0, samples.x0[17:18])  # the same bits as among others
    assert alone.settings[0]["prompt"] == ("7" if conditional else "")
    again = load(tmp_path / "run" / "can", device="cpu")  # exported at the end
    assert again.sample(seeds=17).png(0) == samples.png(17)
    again.export(tmp_path / "out")
    for name in ("can.json", "generator.safetensors"):
        files = [tmp_path / place / name for place in ("run/can", "out")]
        assert files[0].read_bytes() == files[1].read_bytes()
    with refused(InputError):
        again.export(tmp_path / "page", space=True)
    assert not (tmp_path / "page").exists()
    earlier = load(tmp_path / "run", device="cpu", checkpoint=48)
    assert earlier.provenance["images_seen"] == 48
    assert not torch.equal(earlier.sample(seeds=17).x0, alone.x0)
    with refused(InputError):
        model.sample(seeds=[])
    file = tmp_path / "out" / "generator.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with refused(DamagedDataError):
        load(tmp_path / "out")


def test_a_prompt_names_the_class(tmp_path: Path, refused) -> None:
    run = run_experiment(tiny(**{"network.conditional": True}), tmp_path / "run", device="cpu")
    model = load(tmp_path / "run", device="cpu")
    z = torch.randn(1, 6, generator=torch.Generator().manual_seed(5))
    wanted = run.objective.average.module(z, torch.tensor([3]))
    for prompt in ("3", "A handwritten digit 3", "the digit three, in ink"):
        found = model.sample(prompt, 5)
        torch.testing.assert_close(found.x0, wanted, atol=1e-6, rtol=0)
        assert found.settings[0]["prompt"] == prompt
    both = model.sample(["3", "4"], [5, 5])
    assert not torch.equal(both.x0[0], both.x0[1])
    for prompt in ("a horse", "3 and 4", "", "33"):
        with refused(InputError):
            model.sample(prompt, 5)
    for given in (
        {"guidance": 3.0},
        {"steps": 10},
        {"sampler": "DDIM"},
        {"form": "apg:eta=0"},
        {"negative_prompt": "4"},
        {"init_image": "x.png"},
    ):
        with refused(InputError):
            model.sample("3", 5, **given)
    with refused(InputError):
        model.with_(guidance=2)
    with refused(InputError):
        model.interpolate("3", [0, 1], [0.5])
    with refused(InputError):
        load(tmp_path / "run", device="cpu", compile=True)
    with refused(InputError):
        load(tmp_path / "run", device="cpu", checkpoint=7)


def test_captions_as_the_condition(tmp_path: Path, refused) -> None:
    """The mean of a caption's tokens: any sentence is a prompt, not the classes' captions alone."""
    run = run_experiment(tiny(**VARIANTS["captions"]), tmp_path / "run", device="cpu")
    model = load(tmp_path / "run", device="cpu")
    encoder = load_text_encoder(TextConfig())
    prompts = ["digit 3", "the number seven", "an automobile"]
    means = encoder.tokens(prompts).mean(1)
    assert torch.equal(caption_means(encoder, prompts), means)
    z = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    wanted = run.objective.average.module(torch.stack(z), means)
    found = model.sample(prompts, range(3))
    torch.testing.assert_close(found.x0, wanted, atol=1e-6, rtol=0)
    assert model.sample(seeds=[4]).settings[0]["prompt"] == "digit 4"
    again = load(tmp_path / "run" / "can", device="cpu")
    assert torch.equal(again.sample(prompts, range(3)).x0, found.x0)
    batch = run.batches.at(0)
    captions = run.objective.captions
    assert captions is not None
    said = load_records(run_data(run), "train").captions
    assert torch.equal(captions[batch.prompts], caption_means(encoder, said)[batch.prompts])
    about = read_json(tmp_path / "run" / "can" / "can.json")
    about["provenance"]["text"]["identity"] = "bundled sha256:0"
    write_json(tmp_path / "run" / "can" / "can.json", about)
    with refused(DamagedDataError):
        load(tmp_path / "run" / "can", device="cpu")
    with pytest.raises(ValueError, match="needs conditional"):
        CanNetworkConfig(generator_channels=(8,), discriminator_channels=(8,), condition="caption")


def run_data(run: Run) -> DataConfig:
    return load_experiment(run.folder / "experiment.yaml", schema=CanExperiment).data


def test_without_classes_there_is_no_prompt(tmp_path: Path, refused) -> None:
    run_experiment(tiny(), tmp_path / "run", device="cpu")
    model = load(tmp_path / "run", device="cpu")
    assert torch.equal(model.sample("", 4).x0, model.sample(seeds=4).x0)
    with refused(InputError):
        model.sample("3", 4)


def test_names_of_classes() -> None:
    names = ["Expressionism", "Abstract_Expressionism", "claude-monet", "7"]
    reader = ClassReader(names, [f"A work of {name}" for name in names])
    shared = ["A photo", "A photo", *(f"A work of {name}" for name in names[2:])]
    prompts = prompts_of_classes(names, shared)
    assert [ClassReader(names, shared).label(one) for one in prompts] == list(range(len(names)))
    with pytest.raises(InputError, match="names no class"):
        ClassReader(names, shared).label("A photo")
    asked = {
        "A work of Abstract_Expressionism": 1,
        "abstract expressionism, large": 1,
        "Early EXPRESSIONISM": 0,
        "by Claude Monet": 2,
        "seven": 3,
        "A work of 7": 3,
    }
    assert {prompt: reader.label(prompt) for prompt in asked} == asked
    for prompt in ("Expressionism and Abstract Expressionism", "abstract", "77"):
        with pytest.raises(InputError):
            reader.label(prompt)


def test_half_precision(tmp_path: Path) -> None:
    run_experiment(tiny(), tmp_path / "run", device="cpu")
    whole, half = (
        load(tmp_path / "run", device="cpu", dtype=kind) for kind in ("float32", "bfloat16")
    )
    samples = half.sample(seeds=range(4))
    assert samples.settings[0]["dtype"] == "bfloat16"
    assert float((samples.x0 - whole.sample(seeds=range(4)).x0).abs().max()) < 0.05


def test_what_is_refused(tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        tiny(**{"network.generator_channels": [8, 8]})
    with refused(ConfigError):
        prepare_run(tiny(**{"data.resolution": 16}), tmp_path / "size", device="cpu")
    with refused(ConfigError):
        prepare_run(tiny(**{"data.loading": "stream"}), tmp_path / "stream", device="cpu")
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        Image.new("L", (8, 8), number * 10).save(folder / f"{number}.png")
    none = tiny(**{"data.source": str(folder), "data.caption": "a picture"})
    with refused(InputError):
        prepare_run(none, tmp_path / "classes", device="cpu")
    assert not (tmp_path / "size").exists()


@pytest.mark.parametrize("preset", ["can", "can-paper"])
def test_presets(preset: str) -> None:
    experiment = load_experiment(preset, schema=CanExperiment)
    assert experiment.data.resolution == experiment.network.resolution


def test_train_can(sfumato, tmp_path: Path) -> None:
    small = {
        "data.resolution": 8,
        "network.generator_channels": "[8]",
        "network.discriminator_channels": "[8]",
        "training.batch_size": 16,
        "training.images": 32,
    }
    options = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    found = sfumato(
        "train", "can", "digits", *options, "--device", "cpu", "--out", "run", cwd=tmp_path
    )
    assert found.code == 0, found.err
    assert "Generator in run/can" in found.out
    assert load(tmp_path / "run").network.classes == 10
