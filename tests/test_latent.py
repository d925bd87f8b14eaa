"""Latent diffusion: codecs, and runs that train on latents."""

import json
import math
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import ConfigError, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.data.survey import settle
from sfumato.generation.loading import load
from sfumato.generation.origin import load_from
from sfumato.methods.registry import run_experiment
from sfumato.models.codec import LinearCodec, codec_from_dict
from sfumato.models.codec_fitting import fit_linear_codec
from tests.test_export import PROMPTS, SEEDS, without_sfumato
from tests.test_training import StopAfter, equal_states, final_state, tiny

LATENTS = ("codec.kind=linear", "codec.factor=2", "codec.channels=3", "data.resolution=16")


def pictures(count: int = 40, *, channels: int = 3, side: int = 12) -> torch.Tensor:
    """Smooth random pictures, uint8 (count, channels, side, side)."""
    rough = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, (side, side), mode="bicubic")
    return (smooth * 255).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def codec() -> LinearCodec:
    return fit_linear_codec(pictures().split(7), factor=4, channels=5)


# The linear codec ---------------------------------------------------------------------------------


def test_the_basis_is_orthonormal_with_positive_signs(codec: LinearCodec) -> None:
    basis = torch.tensor(codec.basis, dtype=torch.float64)
    assert basis.shape == (5, 48)
    assert torch.allclose(basis @ basis.T, torch.eye(5, dtype=torch.float64), atol=1e-12)
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_numpy_finds_the_same_components(codec: LinearCodec) -> None:
    """A second implementation: singular values of the centred patches, cut by unfold."""
    images = pictures().double() / 255
    patches = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    mean = patches.mean(0)
    _, singular, vectors = torch.linalg.svd(patches - mean, full_matrices=False)
    deviation = singular[:5] / math.sqrt(len(patches))
    assert torch.allclose(torch.tensor(codec.mean).double(), mean, atol=1e-9)
    assert torch.allclose(torch.tensor(codec.deviation).double(), deviation, atol=1e-9)
    agreement = (torch.tensor(codec.basis).double() * vectors[:5]).sum(1).abs()
    assert torch.allclose(agreement, torch.ones(5).double(), atol=1e-9)


def test_latents_come_back_from_their_images(codec: LinearCodec) -> None:
    """Exact in the kept subspace: x0 to images and back by the basis."""
    x0 = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    images = codec.unit(x0)
    assert images.shape == (2, 3, 12, 16)
    patches = torch.nn.functional.unfold(images.double(), 4, stride=4).transpose(1, 2)
    latents = (patches - torch.tensor(codec.mean).double()) @ torch.tensor(codec.basis).double().T
    latents = latents / torch.tensor(codec.deviation).double()
    again = latents.transpose(1, 2).reshape(2, 5, 3, 4)
    assert torch.allclose(again.float(), x0, atol=1e-5)


def test_all_components_keep_every_pixel() -> None:
    images = pictures(side=8, channels=1, count=60)
    codec = fit_linear_codec([images], factor=2, channels=4)
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_the_error_is_the_discarded_eigenvalues() -> None:
    images = pictures()
    everything = fit_linear_codec([images], factor=4, channels=48)
    eigenvalues = torch.tensor(everything.deviation, dtype=torch.float64).square()
    for kept in (1, 5, 20):
        codec = fit_linear_codec([images], factor=4, channels=kept)
        error = codec.unit(codec.encode(images)).double() - images.double() / 255
        assert error.square().mean() == pytest.approx(float(eigenvalues[kept:].sum() / 48), 1e-4)


def test_the_order_of_the_images_changes_no_bit(codec: LinearCodec) -> None:
    assert fit_linear_codec(pictures().flip(0).split(9), factor=4, channels=5) == codec


def test_a_picture_does_not_depend_on_its_batch(codec: LinearCodec) -> None:
    images = pictures()
    x0 = codec.encode(images)
    assert torch.equal(torch.cat([codec.encode(one[None]) for one in images]), x0)
    assert torch.equal(torch.stack([codec.decode(one) for one in x0]), codec.decode(x0))


def test_it_is_the_same_after_json(codec: LinearCodec) -> None:
    assert codec_from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


def test_what_cannot_be_fitted_is_refused(codec: LinearCodec, refused) -> None:
    with refused(InputError):
        codec.encode(pictures(side=10))
    grey = pictures(channels=1).expand(-1, 3, -1, -1)
    with refused(ConfigError):
        fit_linear_codec([grey], factor=2, channels=5)


@pytest.mark.parametrize(
    ("name", "factor", "mean_psnr"),
    [
        pytest.param("cifar10", 4, 23.7, marks=pytest.mark.slow),
        pytest.param("cifar10", 2, 31.3, marks=pytest.mark.slow),
        ("mnist", 4, None),
    ],
)
def test_real_images(name: str, factor: int, mean_psnr: float | None, shared_data: Path) -> None:
    """Held-out latents are standard; 4 channels; the figures are means over images."""
    data = settle(DataConfig(source=str(shared_data / name)))
    train, held_out = (load_records(data, split).images[:] for split in ("train", "test"))
    codec = fit_linear_codec(train[:10_000].split(500), factor=factor, channels=4)
    x0 = codec.encode(held_out).double()
    mean, deviation = x0.mean((0, 2, 3)), x0.std((0, 2, 3))
    assert mean.abs().max() <= 0.05
    assert deviation.min() >= 0.95
    assert deviation.max() <= 1.05
    error = (codec.decode(x0).double() - held_out.double()).square().flatten(1).mean(1) / 255**2
    if mean_psnr is not None:
        assert float((-10 * error.log10()).mean()) == pytest.approx(mean_psnr, abs=0.15)


# A run on latents ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latent_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latent") / "run"
    run_experiment(tiny(*LATENTS), folder)
    return folder


def test_the_network_sees_latents(latent_run: Path) -> None:
    model = load(latent_run, device="cpu")
    assert model.shape == (3, 8, 8)
    assert model.image_shape == (1, 16, 16)
    assert isinstance(model.codec, LinearCodec)
    samples = model.sample(PROMPTS, SEEDS, steps=3)
    assert samples.tensor.shape == (3, 1, 16, 16)
    assert torch.equal(model.codec.decode(samples.x0), samples.tensor)
    alone = model.sample(PROMPTS[1], SEEDS[1], steps=3, alone=False)
    assert torch.equal(alone.tensor[0], samples.tensor[1])


def test_stopped_and_started_again_equals_unbroken(latent_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    with pytest.raises(SystemExit):
        run_experiment(tiny(*LATENTS), folder, hooks=[StopAfter(5)])
    run_experiment(tiny(*LATENTS), folder)
    assert equal_states(final_state(folder), final_state(latent_run))
    assert load(folder, device="cpu").codec == load(latent_run, device="cpu").codec


def test_mirrored_images_are_mirrored_before_they_are_encoded(latent_run: Path) -> None:
    codec = load(latent_run, device="cpu").codec
    images = load_records(tiny(*LATENTS).data, "train").images[:4]
    assert not torch.allclose(codec.encode(images.flip(3)), codec.encode(images).flip(3), atol=0.01)


def test_x0_of_latents_is_not_clamped(latent_run: Path) -> None:
    model = load(latent_run, device="cpu")
    free = model.sample(PROMPTS, SEEDS, steps=3).x0
    assert free.abs().max() > 1
    assert model.sample(PROMPTS, SEEDS, steps=3, x0_range=(-1, 1)).x0.abs().max() <= 1


def test_an_image_to_start_from_is_encoded(latent_run: Path, refused) -> None:
    model = load(latent_run, device="cpu")
    image = load_records(tiny(*LATENTS).data, "train").images[3]
    almost = model.sample(PROMPTS[0], 0, init_image=image, strength=0.05, steps=20)
    near = model.codec.decode(model.codec.encode(image[None]))
    far = model.sample(PROMPTS[0], 0, steps=20)
    distances = [(one.tensor.float() - near.float()).abs().mean() for one in (almost, far)]
    assert distances[0] < distances[1]
    with refused(InputError):
        model.sample(PROMPTS[0], 0, init_image=image, mask=image > 100)


@pytest.mark.parametrize("form", ["rescaled", "apg", "interval"])
def test_forms_of_guidance_act_on_latents(form: str, latent_run: Path) -> None:
    assert load(latent_run, device="cpu").sample(PROMPTS, SEEDS, form=form, steps=2).nfe > 0


def test_dynamic_thresholding_is_for_pixels(latent_run: Path, refused) -> None:
    with refused(InputError):
        load(latent_run, device="cpu").sample(PROMPTS, SEEDS, form="dynamic_thresholding")
    with refused(ConfigError):
        tiny(*LATENTS, "sampling.guidance=dynamic_thresholding")


def test_diffusers_alone_samples_the_same_images(latent_run: Path, tmp_path: Path) -> None:
    exported = latent_run / "model"
    case = {"sampler": "DDIM", "class": "DDIMScheduler", "scale": 3.0, "form": "cfg"}
    (theirs,) = without_sfumato(exported, [case], tmp_path)
    model = load(exported, device="cpu")
    ours = model.sample(PROMPTS, SEEDS, sampler="DDIM", guidance=3, form="cfg", steps=5)
    assert torch.equal(theirs, ours.tensor)
    assert theirs.shape[1:] == (1, 16, 16)
    again = load(latent_run, device="cpu").sample(
        PROMPTS, SEEDS, sampler="DDIM", guidance=3, steps=5
    )
    assert torch.equal(again.tensor, ours.tensor)


def test_a_run_begins_with_the_codec_of_its_origin(latent_run: Path, tmp_path: Path) -> None:
    """Also where it has other images, to which another codec would fit."""
    for origin in (latent_run, latent_run / "model"):
        experiment = load_from(str(origin), "digits", ["training.images=16", "data.split_seed=7"])
        assert experiment.codec == tiny(*LATENTS).codec
        folder = tmp_path / origin.name
        run_experiment(experiment, folder)
        assert load(folder, device="cpu").codec == load(latent_run, device="cpu").codec


def test_sizes_that_do_not_fit_are_refused(refused) -> None:
    with refused(ConfigError):
        tiny("codec.kind=linear", "codec.factor=3", "data.resolution=16")
