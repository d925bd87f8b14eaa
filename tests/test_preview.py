"""Decoders of previews: what they learn, what the VAE learns beside them, where they go."""

import copy
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.base.errors import DamagedDataError
from sfumato.base.images import to_pil
from sfumato.config.autoencoding import VaeNetworkConfig
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.latents import read_latents, write_latents
from sfumato.data.prepare import prepare
from sfumato.data.records import load_records
from sfumato.generation.loading import load
from sfumato.methods.codecs import codec_to_prepare
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.models.autoencoder import build_vae
from sfumato.models.codec import Codec, PixelCodec, VaeCodec
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.models.preview import PreviewDecoder, build_preview, save_preview
from sfumato.models.sizes import parameter_count
from sfumato.models.vae import fit_vae_codec, open_preview, open_vae
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.records import read_records
from tests.test_latent import VAE_LATENTS, stand_in_vae
from tests.test_training import tiny as tiny_diffusion
from tests.test_vae import ADVERSARIAL, pictures, pixels, tiny


def previews(*, channels: int = 1, levels: int = 2) -> PreviewDecoder:
    network = VaeNetworkConfig(block_out_channels=(8,) * levels, preview_channels=8)
    return build_preview(network, channels=channels, seed=3).eval().requires_grad_(False)


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    ["plain", *(pytest.param(one, marks=pytest.mark.slow) for one in ("adversarial", "bfloat16"))],
)
def test_the_vae_learns_the_same_bits_beside_it(variant: str, tmp_path: Path) -> None:
    more = {"plain": {}, "adversarial": ADVERSARIAL, "bfloat16": {"precision": "bfloat16"}}
    runs = {
        name: run_experiment(
            tiny(**more[variant], **{"network.preview_channels": width}),
            tmp_path / name,
            device="cpu",
        )
        for name, width in (("without", 0), ("with", 8))
    }
    parts = runs["without"].objective.parts().keys()
    own = {"preview", "preview_average", "preview_optimizer"}
    assert runs["with"].objective.parts().keys() == parts | own
    first, second = (Checkpoints(tmp_path / name / "checkpoints").latest() for name in runs)
    for part in parts:
        assert first.sha256(part) == second.sha256(part), part
    records = read_records(tmp_path / "with" / "metrics.jsonl")
    for record in records:
        del record["preview_loss"]
    assert records == read_records(tmp_path / "without" / "metrics.jsonl")
    assert not (tmp_path / "without" / "vae" / "preview.safetensors").exists()


def test_its_loss_reaches_its_own_weights_alone(tmp_path: Path) -> None:
    """And is the squared error of what it gives to what the VAE gave of the same latents."""
    run = prepare_run(tiny(**ADVERSARIAL), tmp_path / "run", device="cpu")
    objective, context = run.objective, run.context()
    terms = objective.terms(run.batches.at(0).images.float() / 127.5 - 1, context)
    before = copy.deepcopy(objective.preview)
    metrics = objective._preview_step(terms, context)
    others = (objective.vae, objective.average.module, objective.discriminator)
    assert all(weight.grad is None for one in others for weight in one.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in objective.preview.parameters())
    wanted = objective.vae.decode(terms.latents).sample
    with torch.no_grad():
        assert torch.allclose(terms.reconstructed, wanted)
        error = (before(terms.latents) - wanted).square().mean()
    assert float(metrics["preview_loss"]) == pytest.approx(float(error), rel=1e-6)
    (slope,) = torch.autograd.grad(
        F.mse_loss(before(terms.latents.detach()), wanted.detach()), [before.body[0].weight]
    )
    assert torch.allclose(objective.preview.body[0].weight.grad, slope)


# Decoding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_shape_and_range(levels: int) -> None:
    decoder, factor = previews(channels=3, levels=levels), 2 ** (levels - 1)
    x0 = latents(2, 4, 3, 5)
    assert decoder(x0).shape == (2, 3, 3 * factor, 5 * factor)
    vae = copy.deepcopy(stand_in_vae(channels=3))
    found = VaeCodec(vae, preview_decoder=previews(channels=3)).preview(1000 * latents(2, 4, 3, 5))
    assert found.dtype == torch.uint8
    assert found.shape == (2, 3, 6, 10)
    assert (int(found.min()), int(found.max())) == (0, 255)


def test_its_weights_are_counted() -> None:
    none, one = (tiny(**{"network.preview_channels": width}) for width in (0, 5))
    decoder = build_preview(one.network, channels=3, seed=0)
    own = sum(weight.numel() for weight in decoder.parameters())
    assert parameter_count(one) == parameter_count(none) + own


def multiplications(module: torch.nn.Module, run: Callable[[], object]) -> int:
    """Of the convolutions of `module` while it runs."""
    counts = []

    def count(layer: torch.nn.Conv2d, _, out: Tensor) -> None:
        counts.append(out.numel() * layer.weight[0].numel())

    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return sum(counts)


def test_what_it_costs_with_the_preset() -> None:
    """The figures of docs/latent.md."""
    network = load_experiment("vae").network
    vae = build_vae(network, channels=3, resolution=64, seed=0)
    decoder = build_preview(network, channels=3, seed=0)
    assert sum(weight.numel() for weight in decoder.parameters()) == 103_920
    x0, image = torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 64, 64)
    preview = multiplications(decoder, lambda: decoder(x0))
    decoding = multiplications(vae, lambda: vae.decode(x0))
    step = multiplications(vae, lambda: vae.encode(image)) + decoding
    assert decoding / preview == pytest.approx(21.3, abs=0.05)
    assert preview / step == pytest.approx(0.034, abs=5e-4)


def test_a_latent_gives_the_pixels_of_its_place() -> None:
    """Where it weighs only that latent: the last convolution's outputs are (C, row, column)."""
    decoder = PreviewDecoder(1, factor=2, latent_channels=1, channels=3)
    with torch.no_grad():
        for layer in decoder.body[:-1:2]:
            layer.weight.zero_(), layer.bias.zero_()
            layer.weight[:, 0, 1, 1] = 1 + torch.arange(len(layer.weight))
    x0 = latents(1, 1, 4, 5).abs()
    found = decoder(x0).detach()
    for place in range(12):
        channel, row, column = place // 4, place // 2 % 2, place % 2
        assert torch.equal(found[0, channel, row::2, column::2], (1 + place) * x0[0, 0])


def linear() -> Codec:
    return fit_linear_codec(pictures(0, 50, 1, 8, 8).split(50), factor=2, channels=2)


@pytest.mark.parametrize(
    ("codec", "channels"),
    [(PixelCodec(), 1), (linear(), 2), (VaeCodec(stand_in_vae()), 4)],
    ids=["pixel", "linear", "vae"],
)
def test_a_codec_without_one_decodes(codec: Codec, channels: int) -> None:
    x0 = latents(2, channels, 4, 4)
    assert torch.equal(codec.preview(x0), codec.decode(x0))


@pytest.mark.parametrize("convolutions", [True, False])
def test_normalised_latents_give_the_same_previews(convolutions: bool) -> None:
    """The decoder knows nothing of it: the normalisation is before what it reads."""
    vae, decoder = stand_in_vae(convolutions=convolutions), previews()
    raw = VaeCodec(copy.deepcopy(vae), preview_decoder=decoder)
    images = pictures(1, 20, 1, 16, 16)
    codec = fit_vae_codec(vae, images.split(10), samples=False, preview_decoder=decoder)
    assert not torch.allclose(codec.encode(images), raw.encode(images), atol=0.1)
    ours, theirs = codec.preview(codec.encode(images)), raw.preview(raw.encode(images))
    assert (ours.int() - theirs.int()).abs().max() <= 1
    state = copy.deepcopy(decoder.state_dict())
    assert all(torch.equal(state[name], value) for name, value in previews().state_dict().items())


def test_it_is_no_part_of_what_the_codec_is() -> None:
    alone, beside = VaeCodec(stand_in_vae()), VaeCodec(stand_in_vae(), preview_decoder=previews())
    assert alone.to_dict() == beside.to_dict()


# Files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    """A VAE with random weights and a decoder of previews beside it."""
    folder = tmp_path_factory.mktemp("stand-in") / "vae"
    stand_in_vae().save_pretrained(folder)
    save_preview(previews(), folder)
    return folder


def is_previews(decoder: PreviewDecoder | None) -> bool:
    assert decoder is not None
    wanted, found = previews().state_dict(), decoder.state_dict()
    return all(torch.equal(found[name], value) for name, value in wanted.items())


def test_it_is_read_as_it_was_written(stand_in: Path, tmp_path: Path, refused) -> None:
    before = torch.random.get_rng_state()
    for name in (stand_in, stand_in.parent):
        assert is_previews(open_preview(str(name)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert open_preview(str(tmp_path)) is None
    assert open_preview("nobody/has-this") is None
    file = tmp_path / "preview.safetensors"
    file.write_bytes((stand_in / file.name).read_bytes()[:-1])
    with refused(DamagedDataError):
        open_preview(str(tmp_path))
    open_vae(str(stand_in))  # diffusers does not mind the file


@pytest.mark.slow
def test_it_goes_with_the_vae_from_run_to_run(stand_in: Path, tmp_path: Path) -> None:
    """A run on latents keeps it, one that begins with that run too; an export has none."""
    experiment = tiny_diffusion(*VAE_LATENTS, f"codec.vae={stand_in}", "training.images=16")
    run_experiment(experiment, tmp_path / "run", device="cpu")
    codec = load(tmp_path / "run", device="cpu").codec
    assert is_previews(codec.preview_decoder)
    x0 = latents(1, 4, 8, 8)
    assert not torch.equal(codec.preview(x0), codec.decode(x0))
    again = load_experiment(tmp_path / "run" / "experiment.yaml")
    assert run_experiment(again, tmp_path / "run", device="cpu").finished
    exported = load(tmp_path / "run" / "model", device="cpu").codec
    assert exported.to_dict() == codec.to_dict()
    assert torch.equal(exported.preview(x0), exported.decode(x0))


def test_it_goes_with_prepared_latents(stand_in: Path, tmp_path: Path) -> None:
    """Which are those of the same codec with and without it."""
    records = load_records(DataConfig(source="digits", resolution=16, channels=1), "train")
    for row, image in enumerate(records.images[:20]):
        (tmp_path / "images" / "0").mkdir(parents=True, exist_ok=True)
        to_pil(image).save(tmp_path / "images" / "0" / f"{row}.png")
    data = DataConfig(source=str(tmp_path / "images"), resolution=16, channels=1)
    prepare(data, tmp_path / "prepared")
    data = data.model_copy(update={"source": str(tmp_path / "prepared")})
    codec, made_from = codec_to_prepare(str(stand_in), data)
    write_latents(tmp_path / "prepared", codec, made_from=made_from)
    prepared = read_latents(tmp_path / "prepared")
    assert is_previews(prepared.codec().preview_decoder)
    assert prepared.manifest.is_of(VaeCodec(codec.vae))
    (prepared.folder / "vae" / "preview.safetensors").unlink()
    assert prepared.codec().preview_decoder is None


# The studio ---------------------------------------------------------------------------------------


def test_the_studio_shows_previews_by_it() -> None:
    pytest.importorskip("starlette", reason="the extra `studio` is not installed")
    from sfumato.interactive.studio.drawing import _png

    codec = VaeCodec(stand_in_vae(convolutions=False), preview_decoder=previews())
    x0 = latents(2, 4, 8, 8)
    png = _png(SimpleNamespace(codec=codec), SimpleNamespace(x0=x0))
    shown = np.asarray(Image.open(io.BytesIO(png)))
    assert np.array_equal(shown, pixels(previews()(x0[:1]))[0, 0].numpy())


# Paintings ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_paintings(shared_data: Path, tmp_path: Path, capsys) -> None:
    """Nearness to the VAE's pictures after a short training, and what a preview costs; printed."""
    experiment = load_experiment(
        "vae",
        [
            f"data.source={shared_data / 'paintings'}",
            "data.label_column=none",
            "training.images=2000",
            "training.measured_images=100",
            "training.optimizer.warmup_images=200",
        ],
    )
    run = run_experiment(experiment, tmp_path / "run", device="cpu")
    codec = run.test.codec
    found = run.test.measure()
    x0 = codec.encode(run.test.real.images[:8])
    seconds = {"decode": [], "preview": []}
    for _ in range(5):
        for name, times in seconds.items():
            for one in x0.split(1):
                began = time.process_time()
                getattr(codec, name)(one)
                times.append(time.process_time() - began)
    cost = {name: median(times) for name, times in seconds.items()}
    with capsys.disabled():
        print(
            f"\n{experiment.training.images:,} images, {found['count']} test images: VAE "
            f"{found['vae']['psnr']:.2f} dB, preview {found['preview']['psnr']:.2f} dB, preview to "
            f"VAE {found['preview']['psnr_to_vae']:.2f} dB; one picture decoded in "
            f"{1e3 * cost['decode']:.2f} ms, previewed in {1e3 * cost['preview']:.2f} ms"
        )
    assert found["preview"]["psnr_to_vae"] > 20
    assert cost["preview"] < cost["decode"] / 3
