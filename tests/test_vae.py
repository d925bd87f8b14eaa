"""Autoencoders: their losses in closed form, an exact resume, what comes of a run."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.images import to_float, to_pil
from sfumato.config.overrides import build
from sfumato.config.schema import VaeExperiment, load_experiment
from sfumato.data.records import load_records
from sfumato.evaluation.level_losses import chosen
from sfumato.evaluation.metrics.fidelity import psnr, ssim
from sfumato.evaluation.reconstruction import Reconstructed, bicubic_size, through_bicubic
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.models.autoencoder import build_discriminator, build_vae
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.models.preview import build_preview
from sfumato.models.sizes import parameter_count
from sfumato.models.vae import open_preview, open_vae
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.loop import train
from sfumato.training.objectives.vae import adaptive_weight, divergence
from sfumato.training.records import read_records

SETTINGS = {
    "name": "tiny",
    "method": "vae",
    "data": {"source": "digits", "resolution": 16, "channels": 1, "caption": "{label}"},
    "network": {
        "block_out_channels": [8, 8],
        "latent_channels": 2,
        "norm_num_groups": 4,
        "discriminator_channels": [8],
        "preview_channels": 8,
    },
    "training": {
        "batch_size": 8,
        "images": 48,
        "mirrored": False,
        "optimizer": {"lr": 1e-3, "weight_decay": 0},
        "averaging": {"halflife_images": 50},
        "measured_images": 20,
        "log_every_images": 8,
        "sample_every_images": 24,
        "measure_every_images": 24,
        "checkpoint_every_images": 24,
    },
}
ADVERSARIAL = {"adversarial_weight": 0.5, "mirrored": True, "reconstruction": "l1"}


def tiny(**changes) -> VaeExperiment:
    values = json.loads(json.dumps(SETTINGS))
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        values[section or "training"][key] = value
    return build(VaeExperiment, values, source="test")


def pixels(images: Tensor) -> Tensor:
    """uint8 of floats in [-1, 1]."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).byte()


def pictures(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


# How near images are ------------------------------------------------------------------------------


def test_psnr_and_ssim_in_a_second_implementation() -> None:
    """By numpy, window by window."""
    originals = pictures(0, 3, 2, 14, 13)
    changed = (originals.float() * 0.8 + 20).byte()
    x, y = (one.double().numpy() for one in (changed, originals))
    for one in range(3):
        wanted = 10 * np.log10(255**2 / np.mean((x[one] - y[one]) ** 2))
        assert float(psnr(changed, originals)[one]) == pytest.approx(wanted, abs=1e-9)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    found = []
    for place in np.ndindex(3, 2, 4, 3):
        corner = (*place[:2], slice(place[2], place[2] + 11), slice(place[3], place[3] + 11))
        a, b = x[corner], y[corner]
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        over = (2 * mean_a * mean_b + 2.55**2) * (
            2 * ((weights * a * b).sum() - mean_a * mean_b) + 7.65**2
        )
        variances = (weights * (a**2 + b**2)).sum() - mean_a**2 - mean_b**2
        found.append(over / ((mean_a**2 + mean_b**2 + 2.55**2) * (variances + 7.65**2)))
    wanted = np.array(found).reshape(3, -1).mean(1)
    np.testing.assert_allclose(ssim(changed, originals).numpy(), wanted, atol=1e-9)


def test_psnr_and_ssim_of_equal_small_and_wrong_images() -> None:
    images = pictures(1, 2, 1, 8, 8)
    assert torch.equal(psnr(images, images), torch.full((2,), 100.0, dtype=torch.float64))
    assert torch.allclose(ssim(images, images), torch.ones(2, dtype=torch.float64))
    one = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    other = one.clone()
    other[0, 0, 0, 0] = 255
    assert float(psnr(one, other)) == pytest.approx(10 * np.log10(16))
    for wrong in (images.float(), images[:1], images[0]):
        with pytest.raises(ValueError, match=r"takes uint8|no pairs"):
            psnr(wrong, images)


def test_bicubic_has_as_many_numbers() -> None:
    size = bicubic_size((3, 64, 64), factor=4, channels=4)
    assert size == (18, 18)  # 3 * 18^2 = 972 <= 4 * 16^2 = 1024 < 3 * 19^2
    assert bicubic_size((1, 8, 8), factor=8, channels=1) == (1, 1)
    assert bicubic_size((3, 32, 64), factor=2, channels=12) == (32, 64)
    images = pictures(2, 2, 3, 32, 32)
    assert torch.equal(through_bicubic(images, factor=2, channels=12), images)  # none is lost
    from PIL import Image

    array = images[0].permute(1, 2, 0).numpy()
    small = Image.fromarray(array).resize((18, 18), Image.Resampling.BICUBIC)
    found = F.interpolate(images[:1].float(), (18, 18), mode="bicubic", antialias=True)
    ours = found[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    assert np.abs(ours - np.asarray(small, dtype=float)).max() <= 1


def test_what_comes_back_is_where_the_images_are() -> None:
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8, device="meta")
    real = Reconstructed(images=images, extractor=None, statistics=None)
    found = real.through(lambda part: torch.zeros(part.shape, dtype=torch.uint8))
    assert (found.device, found.shape) == (images.device, images.shape)


# Losses -------------------------------------------------------------------------------------------


def test_divergence_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)
    )
    assert torch.allclose(divergence(mean, log_variance), wanted.flatten(1).sum(1))


def gradient(losses: Tensor, vae: torch.nn.Module) -> dict[str, Tensor]:
    names, weights = zip(*vae.named_parameters(), strict=True)
    found = torch.autograd.grad(losses, weights, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(weight) if slope is None else slope
        for name, weight, slope in zip(names, weights, found, strict=True)
    }


@pytest.mark.parametrize("perceptual_weight", [0.0, 0.3])
def test_every_loss_reaches_the_autoencoder(perceptual_weight: float, tmp_path: Path) -> None:
    """The gradient of a step is the sum of its terms' gradients, each of which is not zero, and the
    adversarial one is weighed as Esser et al. 2021 say."""
    experiment = tiny(**ADVERSARIAL, perceptual_weight=perceptual_weight, kl_weight=0.01)
    run = prepare_run(experiment, tmp_path / "run", device="cpu")
    objective, context = run.objective, run.context()
    vae = objective.vae
    images = to_float(run.batches.at(0).images, (-1.0, 1.0))
    terms = objective.terms(images, context)
    deceived = -objective.discriminator.eval()(terms.reconstructed).mean()
    objective.discriminator.train()
    slopes = {
        "reconstruction": gradient(terms.reconstruction, vae),
        "divergence": gradient(0.01 * terms.divergence, vae),
        "adversarial": gradient(deceived, vae),
    }
    if perceptual_weight:
        slopes["perceptual"] = gradient(perceptual_weight * terms.perceptual, vae)
    for name, found in slopes.items():
        reached = {part for part, slope in found.items() if slope.abs().sum() > 0}
        assert any(part.startswith("encoder.conv_in") for part in reached), name
        if name != "divergence":
            assert any(part.startswith("decoder.conv_out") for part in reached), name
    last = "decoder.conv_out.weight"
    like = slopes["reconstruction"][last] + (slopes["perceptual"][last] if perceptual_weight else 0)
    weight = float(like.norm() / (slopes["adversarial"][last].norm() + 1e-6))
    losses = objective.losses(terms, context)
    assert float(losses["adaptive_weight"]) == pytest.approx(weight, rel=1e-2)
    total = torch.stack([loss for name, loss in losses.items() if name != "adaptive_weight"]).sum()
    found = gradient(total, vae)
    for name, slope in found.items():
        wanted = sum(
            (0.5 * float(losses["adaptive_weight"]) if term == "adversarial" else 1) * one[name]
            for term, one in slopes.items()
        )
        assert torch.allclose(slope, wanted, rtol=0.02, atol=1e-4), name


@pytest.fixture(scope="module")
def transformers(tmp_path_factory) -> dict[str, str]:
    """A CLIP and a DINOv2 with random weights, by the names of their extractors."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    root = tmp_path_factory.mktemp("transformers")
    sizes = {**small, "intermediate_size": 16, "image_size": 24, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=12))
        dinov2 = Dinov2Model(Dinov2Config(**small, image_size=56, patch_size=56))
    found = {"clip": clip, "dinov2": dinov2}
    for name, model in found.items():
        model.save_pretrained(root / name)
    return {name: str(root / name) for name in found}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_other_features_are_trained_against(
    name: str, precision: str, transformers: dict[str, str], tmp_path: Path
) -> None:
    """Each place's features brought to length one, and their distance falls."""
    experiment = tiny(
        perceptual=name, perceptual_weight=1.0, features=transformers, precision=precision
    )
    run = prepare_run(experiment, tmp_path / "run", device="cpu")
    objective, images = run.objective, to_float(run.batches.at(0).images, (-1.0, 1.0))
    terms = objective.terms(images, run.context())
    found, wanted = (
        objective.distance.stages(one.expand(-1, 3, -1, -1))
        for one in (terms.reconstructed, images)
    )
    assert len(found) == 2
    likeness = [F.cosine_similarity(a, b).mean() for a, b in zip(found, wanted, strict=True)]
    assert terms.perceptual.item() == pytest.approx(2 - sum(likeness).item(), rel=1e-4)
    assert gradient(terms.perceptual, objective.vae)["encoder.conv_in.weight"].abs().sum() > 0
    first = run.take_step()["perceptual"]
    for _ in range(4):
        last = run.take_step()["perceptual"]
    assert last < first


def test_adaptive_weight_in_closed_form() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    likeness, deceived = 2 * weight.square().sum(), weight.sum()
    found = adaptive_weight(likeness, deceived, weight)
    assert float(found) == pytest.approx(20 / (2**0.5 + 1e-6))
    assert not found.requires_grad
    assert float(adaptive_weight(likeness, 0 * weight.sum(), weight)) == 1e4


def test_a_step_in_a_second_implementation(tmp_path: Path) -> None:
    experiment = tiny(perceptual_weight=0, kl_weight=0.02)
    run = prepare_run(experiment, tmp_path / "run", device="cpu")
    objective, context = run.objective, run.context()
    vae, batch = copy.deepcopy(objective.vae), run.batches.at(0)
    metrics = objective.step(batch, context)
    images = batch.images.float() / 127.5 - 1
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=context.generator("posterior"))
    found = vae.decode(posterior.mean + posterior.std * noise).sample
    sums = ((found - images) ** 2).sum() + 0.02 * posterior.kl().sum()
    wanted = float(sums.detach()) / images.numel()
    assert float(metrics["loss"]) == pytest.approx(wanted, rel=1e-5)


def test_the_discriminator_learns_late_and_changes_nothing_else(tmp_path: Path) -> None:
    experiment = tiny(**ADVERSARIAL, adversarial_from_images=8)
    run = prepare_run(experiment, tmp_path / "run", device="cpu")
    objective = run.objective
    before = copy.deepcopy(objective.discriminator.state_dict())
    early = run.take_step()
    assert (early["discriminator_loss"], early["adaptive_weight"]) == (0, 0)
    now = objective.discriminator.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before)
    late = run.take_step()
    assert late["discriminator_loss"] > 0
    assert late["adaptive_weight"] > 0
    names = [name for name, _ in objective.discriminator.named_parameters()]
    now = objective.discriminator.state_dict()
    assert any(not torch.equal(before[name], now[name]) for name in names)
    vae = copy.deepcopy(objective.vae.state_dict())
    images = to_float(run.batches.at(0).images, (-1.0, 1.0))
    objective._discriminator_step(
        images, images, {"loss": torch.ones(()), "grad_norm": torch.ones(())}, run.context()
    )
    assert all(torch.equal(vae[name], value) for name, value in objective.vae.state_dict().items())


def test_untrained_networks() -> None:
    experiment = tiny(**ADVERSARIAL, **{"network.mid_attention": True})
    before = torch.random.get_rng_state()
    vae = build_vae(experiment.network, channels=3, resolution=16, seed=0)
    judge = build_discriminator(experiment.network, channels=3, seed=0)
    preview = build_preview(experiment.network, channels=3, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    preview = build_preview(experiment.network, channels=3, seed=0)
    count = sum(weight.numel() for one in (vae, judge, preview) for weight in one.parameters())
    assert parameter_count(experiment) == count
    posterior = vae.encode(torch.rand(2, 3, 16, 16)).latent_dist
    assert torch.allclose(posterior.logvar, torch.full((2, 2, 8, 8), -6.0))


# Runs ---------------------------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "adversarial"])
def test_stopped_and_started_again_equals_unbroken(variant: str, tmp_path: Path) -> None:
    more = {**ADVERSARIAL, "adversarial_from_images": 8} if variant == "adversarial" else {}
    experiment = tiny(**more)
    whole = run_experiment(experiment, tmp_path / "whole", device="cpu")
    broken = prepare_run(experiment, tmp_path / "broken", device="cpu", hooks=[StopAt(32)])
    train(broken)
    assert broken.images_seen == 32
    again = run_experiment(experiment, tmp_path / "broken", device="cpu")
    assert whole.finished
    assert again.finished
    assert {"preview", "preview_average", "preview_optimizer"} < whole.objective.parts().keys()
    for name in whole.objective.parts():
        files = [
            Checkpoints(tmp_path / folder / "checkpoints").latest().verify(name).read_bytes()
            for folder in ("whole", "broken")
        ]
        assert files[0] == files[1], name
    same = "metrics.jsonl", "reconstruction.jsonl", "samples/images-000000048.png"
    for file in (*same, "vae/diffusion_pytorch_model.safetensors", "vae/preview.safetensors"):
        found = [(tmp_path / folder / file).read_bytes() for folder in ("whole", "broken")]
        assert found[0] == found[1], file


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "run"
    run_experiment(tiny(images=200, sample_every_images=200), folder, device="cpu")
    return folder


def test_the_result_is_the_average_as_diffusers_opens_it(vae_run: Path) -> None:
    vae = AutoencoderKL.from_pretrained(vae_run / "vae")
    state = Checkpoints(vae_run / "checkpoints").latest()
    average = state.states({"average": vae})["average"]
    assert all(torch.equal(average[name], value) for name, value in vae.state_dict().items())
    assert torch.equal(open_vae(str(vae_run)).encoder.conv_in.weight, vae.encoder.conv_in.weight)


def test_figures_stand_beside_pca_and_bicubic(vae_run: Path) -> None:
    """Each row measured by hand."""
    experiment = tiny(images=200)
    about = json.loads((vae_run / "reconstruction.json").read_text())
    test = load_records(experiment.data, "test")
    images = test.images[chosen(test, 20)]
    linear = fit_linear_codec(
        load_records(experiment.data, "train").images.split(250), factor=2, channels=2
    )
    vae = open_vae(str(vae_run))
    with torch.no_grad():
        latents = vae.encode(to_float(images, (-1.0, 1.0))).latent_dist.mean
        made, shown = vae.decode(latents).sample, open_preview(str(vae_run))(latents)
    recoded = {
        "vae": pixels(made),
        "preview": pixels(shown),
        "pca": linear.decode(linear.encode(images)),
        "bicubic": through_bicubic(images, factor=2, channels=2),
    }
    for name, found in recoded.items():
        assert about[name]["psnr"] == pytest.approx(float(psnr(found, images).mean()), abs=0.01)
        assert about[name]["ssim"] == pytest.approx(float(ssim(found, images).mean()), abs=0.001)
        assert about[name]["frechet"] > 0
    near = psnr(recoded["preview"], recoded["vae"]).mean()
    assert about["preview"]["psnr_to_vae"] == pytest.approx(float(near), abs=0.01)
    records = read_records(vae_run / "reconstruction.jsonl")
    assert [record["images"] for record in records] == [*range(24, 200, 24), 200]
    assert all(records[-1][name] == about[name] for name in ("vae", "preview"))
    assert all(record["pca"] == about["pca"] for record in records)
    assert records[-1]["vae"]["psnr"] > records[0]["vae"]["psnr"]
    assert records[-1]["preview"]["psnr"] > records[0]["preview"]["psnr"]


def test_images_of_files_sorted_by_class_are_of_many_classes(tmp_path: Path) -> None:
    """The grey of an image says its class: 4 classes, of 10 test images each."""
    for name in ("train", "test"):
        for row in range(40):
            file = tmp_path / "grey" / name / str(row // 10) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image = pictures(row, 1, 16, 16) // 8 + 60 * (row // 10)
            to_pil(image).save(file)
    experiment = tiny(perceptual_weight=0, measured_images=10)
    data = experiment.data.model_copy(update={"source": str(tmp_path / "grey")})
    run = prepare_run(experiment.model_copy(update={"data": data}), tmp_path / "run", device="cpu")
    assert len(run.test.real.images) == 10
    for images in (run.test.real.images, run.test.shown):
        assert len(set((images.flatten(1).float().mean(1) // 60).tolist())) >= 3


@pytest.mark.slow
def test_latents_of_a_run_are_trained_on(vae_run: Path, sfumato, tmp_path: Path) -> None:
    small = {
        "codec.kind": "vae",
        "codec.vae": str(vae_run),
        "codec.factor": "2",
        "codec.channels": "2",
        "data.resolution": "16",
        "training.batch_size": "4",
        "training.images": "8",
    }
    options = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    found = sfumato("train", "digits", *options, "--device", "cpu", "--out", "run", cwd=tmp_path)
    assert found.code == 0, found.err


def test_train_vae(sfumato, tmp_path: Path) -> None:
    small = {
        "data.resolution": 16,
        "network.block_out_channels": "[8, 8]",
        "network.preview_channels": 8,
        "training.batch_size": 8,
        "training.images": 16,
        "training.measured_images": 20,
    }
    options = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    found = sfumato(
        "train", "vae", "digits", *options, "--device", "cpu", "--out", "run", cwd=tmp_path
    )
    assert found.code == 0, found.err
    assert "Autoencoder in run/vae" in found.out
    rows = "VAE     ", "preview ", "PCA     ", "bicubic "
    assert all(f"\n  {name} " in found.out for name in rows)


def test_what_is_refused(tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        tiny(**{"data.resolution": 15})
    with refused(ConfigError):
        tiny(**{"network.norm_num_groups": 3})
    with refused(ConfigError):
        prepare_run(tiny(**{"data.loading": "stream"}), tmp_path / "stream", device="cpu")
    with refused(InputError):
        prepare_run(tiny(perceptual="vgg"), tmp_path / "vgg", device="cpu")
    for name in ("classifier", "inception"):  # no weights are looked for
        with refused(ConfigError):
            prepare_run(tiny(perceptual=name), tmp_path / name, device="cpu")
    with refused(ConfigError):  # PCA has no more components than a patch has pixels
        prepare_run(tiny(**{"network.latent_channels": 5}), tmp_path / "many", device="cpu")
    assert not (tmp_path / "stream").exists()


def test_preset() -> None:
    experiment = load_experiment("vae", schema=VaeExperiment)
    assert experiment.data.resolution == 64
    assert experiment.network.factor == 4
