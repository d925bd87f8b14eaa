"""Latent diffusion: codecs, and runs that train on latents."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.data.survey import settle
from sfumato.generation.call import OUTPUT_TYPES
from sfumato.generation.export import pipeline_of
from sfumato.generation.loading import load
from sfumato.generation.origin import load_from
from sfumato.generation.pipeline import TextToImagePipeline
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.models.codec import LinearCodec, VaeCodec, codec_from_dict
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.models.vae import fit_vae_codec, fold_normalisation, open_vae
from tests.test_export import PROMPTS, SEEDS, run_python, without_sfumato
from tests.test_training import StopAfter, equal_states, final_state, tiny

CASE = {"sampler": "DDIM", "class": "DDIMScheduler", "scale": 3.0, "form": "cfg"}
ASKED = {"sampler": "DDIM", "guidance": 3, "form": "cfg", "steps": 5}
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "factor", "mean_psnr"),
    [
        ("cifar10", 4, 23.7),
        ("cifar10", 2, 31.3),
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


def test_a_mask_keeps_latents_of_whole_patches_and_all_its_pixels(latent_run: Path) -> None:
    """Rows 0 to 6 of 16 are kept, patches are of 2 x 2: the latents of rows 6 and 7 are sampled."""
    model = load(latent_run, device="cpu")
    image = load_records(tiny(*LATENTS).data, "train").images[3]
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 7:] = True
    found = model.sample(PROMPTS, SEEDS, init_image=image, mask=mask, steps=3)
    assert torch.equal(found.tensor[:, :, :7], image[:, :7].expand(len(SEEDS), -1, -1, -1))
    latents = model.codec.encode(image[None])
    assert torch.equal(found.x0[:, :, :3], latents[:, :, :3].expand(len(SEEDS), -1, -1, -1))
    assert (found.x0[:, :, 3] - latents[:, :, 3]).abs().max() > 0.1
    pipe = TextToImagePipeline.from_pretrained(latent_run)
    how = {"image": image, "mask_image": mask, "num_inference_steps": 3, "seeds": list(SEEDS)}
    for kind, kept in (("uint8", image), ("pt", image / 255)):
        drawn = pipe(list(PROMPTS), output_type=kind, **how).images
        assert torch.equal(drawn[:, :, :7], kept[:, :7].expand(len(SEEDS), -1, -1, -1))
    pixels = pipe(list(PROMPTS), output_type="np", **how).images
    assert (pixels[:, :7, :, 0] == (image[0, :7] / 255).numpy()).all()


@pytest.mark.parametrize("form", ["rescaled", "apg", "interval", "channel_thresholding"])
def test_forms_of_guidance_act_on_latents(form: str, latent_run: Path) -> None:
    assert load(latent_run, device="cpu").sample(PROMPTS, SEEDS, form=form, steps=2).nfe > 0


def test_dynamic_thresholding_is_for_pixels(latent_run: Path, refused) -> None:
    with refused(InputError):
        load(latent_run, device="cpu").sample(PROMPTS, SEEDS, form="dynamic_thresholding")
    with refused(ConfigError):
        tiny(*LATENTS, "sampling.guidance=dynamic_thresholding")


@pytest.mark.slow
def test_diffusers_alone_samples_the_same_images(latent_run: Path, tmp_path: Path) -> None:
    exported = latent_run / "model"
    (theirs,) = without_sfumato(exported, [CASE], tmp_path)
    model = load(exported, device="cpu")
    ours = model.sample(PROMPTS, SEEDS, **ASKED)
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


def test_settings_of_another_codec_are_refused(refused) -> None:
    vae = ("codec.vae=folder", "codec.posterior=sample")
    with refused(ConfigError):
        tiny("codec.factor=2", "codec.channels=3", *vae)
    with refused(ConfigError):
        tiny(*LATENTS, *vae)


# Variational autoencoders -------------------------------------------------------------------------


VAE_LATENTS = ("codec.kind=vae", "codec.factor=2", "codec.channels=4", "data.resolution=16")


def stand_in_vae(*, channels: int = 1, convolutions: bool = True) -> AutoencoderKL:
    """A VAE of factor 2 with random weights, the same ones at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            use_quant_conv=convolutions,
            use_post_quant_conv=convolutions,
        ).eval()


@pytest.mark.parametrize("convolutions", [True, False])
def test_the_folded_vae_has_normalised_latents_and_the_same_images(convolutions: bool) -> None:
    images, vae = pictures(channels=1, side=16), stand_in_vae(convolutions=convolutions)
    raw = VaeCodec(copy.deepcopy(vae))
    before, deviation = raw.posterior(images)
    mean, spread = before.mean((0, 2, 3)), before.std((0, 2, 3), correction=0)
    codec = fit_vae_codec(vae, images.split(7), samples=False)
    x0, own_deviation = codec.posterior(images)
    shape = (1, 4, 1, 1)
    assert torch.allclose(x0, (before - mean.view(shape)) / spread.view(shape), atol=1e-4)
    assert torch.allclose(own_deviation, deviation / spread.view(shape), rtol=1e-4)
    assert torch.allclose(codec.unit(x0), raw.unit(before), atol=1e-5)
    assert torch.allclose(x0.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(x0.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-4)
    assert codec.vae.config["scaling_factor"] == 1


@pytest.mark.parametrize("convolutions", [True, False])
def test_a_vae_is_folded_where_it_is(convolutions: bool) -> None:
    vae = stand_in_vae(convolutions=convolutions).to("meta")
    fold_normalisation(vae, torch.zeros(4), torch.ones(4))
    assert {weight.device.type for weight in vae.parameters()} == {"meta"}


def test_a_vae_that_overflows_in_float16_runs_in_float32() -> None:
    images, latents = pictures(3, channels=1, side=16), torch.full((2, 4, 8, 8), 9.0)
    vae = stand_in_vae()
    with torch.no_grad():
        for half in (vae.encoder, vae.decoder):
            half.conv_in.weight *= 1e5
    codec = VaeCodec(vae.half())
    exact = VaeCodec(copy.deepcopy(vae).float())
    assert torch.equal(codec.encode(images), exact.encode(images))
    assert torch.equal(codec.unit(latents), exact.unit(latents))
    assert codec.unit(latents).isfinite().all()
    assert vae.dtype == torch.float16
    vae.register_to_config(force_upcast=False)
    assert codec.unit(latents).isnan().any()


def test_drawn_latents_have_deviation_one() -> None:
    images = pictures(200, channels=1, side=16)
    codec = fit_vae_codec(stand_in_vae(), images.split(50), samples=True)
    mode, deviation = codec.posterior(images)
    noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(0))
    x0 = codec.encode(images, noise)
    assert torch.equal(x0, mode + deviation * noise)
    assert torch.allclose(x0.std((0, 2, 3)), torch.ones(4), atol=0.02)
    assert (mode.std((0, 2, 3)) < 0.99).all()


@pytest.fixture(scope="module", params=["mode", pytest.param("sample", marks=pytest.mark.slow)])
def vae_run(request, tmp_path_factory) -> Path:
    """A run on latents of a VAE that is gone afterwards: its folder has a copy."""
    folder = tmp_path_factory.mktemp("vae")
    stand_in_vae().save_pretrained(folder / "stand-in")
    experiment = tiny(
        *VAE_LATENTS, f"codec.vae={folder}/stand-in", f"codec.posterior={request.param}"
    )
    run_experiment(experiment, folder / "run")
    with pytest.raises(SystemExit):
        run_experiment(experiment, folder / "broken", hooks=[StopAfter(5)])
    (folder / "stand-in").rename(folder / "gone")
    run_experiment(experiment, folder / "broken")
    return folder / "run"


def test_a_run_on_a_vae_resumes_exactly(vae_run: Path) -> None:
    assert equal_states(final_state(vae_run.parent / "broken"), final_state(vae_run))


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_has_the_vae_that_it_trains_with(
    tmp_path: Path,
) -> None:
    experiment = tiny(*VAE_LATENTS, f"codec.vae={tmp_path}/vae", "training.images=16")
    vae = stand_in_vae()
    vae.save_pretrained(tmp_path / "vae")
    prepare_run(experiment, tmp_path / "run", device="cpu")
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 2
    vae.save_pretrained(tmp_path / "vae")
    run = run_experiment(experiment, tmp_path / "run", device="cpu")
    assert load(tmp_path / "run", device="cpu").codec.to_dict() == run.notes["codec"]


@pytest.mark.slow
def test_an_exported_vae_samples_the_same_images_without_sfumato(
    vae_run: Path, tmp_path: Path
) -> None:
    ours = load(vae_run, device="cpu").sample(PROMPTS, SEEDS, **ASKED)
    assert ours.tensor.shape == (3, 1, 16, 16)
    assert torch.equal(load(vae_run / "model").sample(PROMPTS, SEEDS, **ASKED).tensor, ours.tensor)
    (theirs,) = without_sfumato(vae_run / "model", [CASE], tmp_path)
    assert torch.equal(theirs, ours.tensor)


@pytest.mark.filterwarnings("ignore:.*steps_offset:FutureWarning")  # it changes the scheduler
def test_a_pipeline_comes_from_one_of_stable_diffusion(vae_run: Path) -> None:
    ours = pipeline_of(load(vae_run, device="cpu"))
    asked = {"seeds": [3], "num_inference_steps": 3, "output_type": "pt"}
    expected = ours(PROMPTS[0], **asked).images
    theirs = StableDiffusionPipeline(
        **{name: ours.components[name] for name in ("unet", "vae", "text_encoder", "tokenizer")},
        scheduler=ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
    )
    settings = ("process", "codec", "sampling", "max_tokens", "provenance")
    again = TextToImagePipeline.from_pipe(theirs, **{name: ours.config[name] for name in settings})
    assert torch.equal(again(PROMPTS[0], **asked).images, expected)


def test_a_run_begins_with_the_vae_of_its_origin(vae_run: Path, tmp_path: Path) -> None:
    """Of a run and of an export; normalised once, not again."""
    recorded = load(vae_run, device="cpu").codec.to_dict()
    for origin in (vae_run, vae_run / "model"):
        experiment = load_from(str(origin), "digits", ["training.images=16"])
        folder = tmp_path / origin.name
        run_experiment(experiment, folder)
        assert load(folder, device="cpu").codec.to_dict() == recorded


def test_a_run_is_resumed_from_the_new_place_of_its_export(vae_run: Path, tmp_path: Path) -> None:
    origin, moved = tmp_path / "model", tmp_path / "moved"
    shutil.copytree(vae_run / "model", origin)
    for place, images in ((origin, 16), (moved, 32)):
        settings = [f"training.images={images}"]
        experiment = load_from(str(place), "digits", settings, tmp_path / "run")
        assert run_experiment(experiment, tmp_path / "run").images_seen == images
        if place == origin:
            origin.rename(moved)


def test_a_damaged_vae_is_noticed(vae_run: Path, tmp_path: Path, refused) -> None:
    shutil.copytree(vae_run, tmp_path / "run")
    other = stand_in_vae(convolutions=False)
    other.save_pretrained(tmp_path / "run" / "vae")
    with refused(DamagedDataError):
        load(tmp_path / "run", device="cpu")


def test_images_of_latents_are_in_range_in_every_kind_of_output() -> None:
    """A VAE decodes to any number; all kinds say the same picture."""
    codec = VaeCodec(stand_in_vae(channels=3))
    latents = 30 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(codec.unit(latents).max()) > 1
    pt, array, pil, pixels = (
        OUTPUT_TYPES[kind](latents, codec, lambda images: images)
        for kind in ("pt", "np", "pil", "uint8")
    )
    assert float(pt.min()) == 0
    assert float(pt.max()) == 1
    assert torch.equal(torch.from_numpy(array), pt.permute(0, 2, 3, 1))
    assert torch.equal(torch.from_numpy(np.stack(pil)).permute(0, 3, 1, 2), pixels)
    assert torch.equal((pt * 255).round().byte(), pixels)


def test_a_pipeline_without_its_vae_is_refused(refused) -> None:
    codec = VaeCodec(stand_in_vae()).to_dict()
    with refused(InputError):
        codec_from_dict(codec)


def test_vaes_that_do_not_fit_are_refused(tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        tiny(*VAE_LATENTS)
    with refused(InputError, theirs=r"(?s)(?<=diffusers: ).*?(?=\n|$)"):
        run_experiment(tiny(*VAE_LATENTS, f"codec.vae={tmp_path}"), tmp_path / "run")
    stand_in_vae(channels=3).save_pretrained(tmp_path / "colour")
    wrong = ("codec.factor=4", f"codec.vae={tmp_path}/colour")
    with refused(ConfigError):
        run_experiment(tiny(*VAE_LATENTS, *wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_whole_autoencoder_kl_is_refused(tmp_path: Path, refused) -> None:
    """diffusers would give it random weights."""
    stand_in_vae().save_pretrained(tmp_path)
    file, weights = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"
    config, state = json.loads(file.read_text()), load_file(weights)
    for change in ({"_class_name": "AutoencoderTiny"}, {"latent_channels": 3}):
        file.write_text(json.dumps(config | change))
        with refused(InputError):
            open_vae(str(tmp_path))
    file.write_text(json.dumps(config))
    del state["decoder.conv_in.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with refused(InputError):
        open_vae(str(tmp_path))


STABLE_DIFFUSION = """
import sys
sys.modules["sfumato"] = None
import json
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

folder, out, wanted = sys.argv[1:]
prompts, seeds = json.loads(wanted)
pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
assert type(pipe.scheduler) is DDIMScheduler
generators = [torch.Generator().manual_seed(seed) for seed in seeds]
images = pipe(
    prompts, generator=generators, guidance_scale=3.0, num_inference_steps=5, output_type="np"
).images
save_file({"images": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()}, out)
"""


@pytest.mark.slow
def test_stable_diffusion_opens_an_export(tmp_path: Path) -> None:
    """The pipeline of diffusers, which knows nothing of sfumato, draws the same images."""
    stand_in_vae(channels=3).save_pretrained(tmp_path / "vae")
    own = (f"codec.vae={tmp_path}/vae", "data.channels=3", "text.max_tokens=77")
    run_experiment(tiny(*VAE_LATENTS, *own, "training.images=32"), tmp_path / "run")
    exported, out = tmp_path / "run" / "model", tmp_path / "images.safetensors"
    run_python(
        STABLE_DIFFUSION,
        str(exported),
        str(out),
        json.dumps([PROMPTS, SEEDS]),
        cwd=tmp_path,
        PYTHONPATH="",
    )
    theirs = load_file(out)["images"].mul(255).round()
    ours = load(exported, device="cpu").sample(PROMPTS, SEEDS, **ASKED).tensor
    assert ours.float().std() > 5
    assert (theirs - ours.float()).abs().max() <= 1
