"""From an image instead of noise, and with known pixels."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from sfumato.base.errors import InputError, LintWarning
from sfumato.base.images import settings_in_png, to_float
from sfumato.data.decode import Target, decode
from sfumato.diffusion.guidance import ClassifierFreeGuidance
from sfumato.diffusion.known import KnownPixels
from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import initial_noise, nfe_of, sample
from sfumato.diffusion.solvers.build import build_solver, steps_done
from sfumato.diffusion.solvers.registry import SAMPLERS, Sampling
from sfumato.diffusion.solvers.schedulers import levels_of, spaced_timesteps
from sfumato.generation.asked import generators_from_seeds
from sfumato.generation.export import pipeline_of
from sfumato.generation.model import Model
from sfumato.generation.start import begin, start_of
from sfumato.models.codec import PixelCodec
from tests.conftest import IdealDenoiser
from tests.test_sampling import (
    COSINE,
    EVERY_SAMPLER,
    MEAN,
    VARIANCE,
    ideal_x0,
    root_mean_square,
    tokens_of,
)

PROMPT = "A handwritten digit 3"
STRENGTHS = [0.05, 0.3, 0.35, 0.57, 0.8, 0.99, 1.0]


@pytest.fixture(scope="module")
def digit(digits8) -> torch.Tensor:
    """A real digit, uint8 (1, 8, 8)."""
    return digits8.images[3]


@pytest.fixture(scope="module")
def half() -> torch.Tensor:
    """A mask: the lower half is painted anew. bool (1, 8, 8)."""
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    return mask


def solver_of(name: str, process: Process, *, steps: int, strength: float, seeds=(0,)):
    generators = generators_from_seeds(seeds)
    sampling = Sampling(sampler=name, steps=steps)
    return build_solver(process, sampling, generators=generators, strength=strength)


# The levels of a strength -------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("name", "process"), EVERY_SAMPLER)
def test_a_strength_picks_the_last_levels(name: str, process: Process, strength: float) -> None:
    """The whole schedule's last int(steps * strength) levels, whatever the sampler."""
    steps, done = 20, int(20 * strength)
    whole = solver_of(name, process, steps=steps, strength=1.0)
    part = solver_of(name, process, steps=steps, strength=strength)
    levels = whole.times.unique().flip(0)
    assert len(levels) == steps
    assert torch.equal(part.times.unique().flip(0), levels[-done:])
    guidance = ClassifierFreeGuidance(1.0)
    evaluations = nfe_of(part.times, process, guidance)
    assert evaluations == {"Heun": 2 * done - 1, "PNDM": done + (done > 1)}.get(name, done)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", sorted(set(SAMPLERS["variance_preserving"]) - {"PNDM"}))
def test_levels_are_those_of_diffusers(name: str, strength: float) -> None:
    """`get_timesteps` of its image-to-image pipeline, on the scheduler of the whole schedule. Not
    PNDM: diffusers counts the level that it evaluates twice as a step."""
    steps = 20
    scheduler = solver_of(name, COSINE, steps=steps, strength=1.0).scheduler
    theirs, count = StableDiffusionImg2ImgPipeline.get_timesteps(
        SimpleNamespace(scheduler=scheduler), steps, strength, None
    )
    assert count == steps_done(steps, strength)
    sampler = SAMPLERS["variance_preserving"][name]
    levels = spaced_timesteps(levels_of(sampler, COSINE), steps, spacing="trailing")
    ours = solver_of(name, COSINE, steps=steps, strength=strength).times
    assert torch.equal(ours, levels[steps - 1 - theirs.long()])


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, math.nan, math.inf, 0.04])
def test_strengths_that_are_refused(strength: float, refused) -> None:
    with refused(InputError):
        steps_done(20, strength)


def test_a_student_has_no_more_steps_to_start_from(refused) -> None:
    for steps in (1, 4):
        with refused(InputError):
            steps_done(steps, 0.2, student=True)


def test_the_strength_that_a_message_names_works() -> None:
    for steps in range(1, 300):
        with pytest.raises(InputError) as caught:
            steps_done(steps, 0.5 / steps)
        assert steps_done(steps, float(str(caught.value).split("at least ")[1].split(",")[0])) >= 1


# With a known score -------------------------------------------------------------------------------

QUIET = [(n, p) for n, p in EVERY_SAMPLER if not SAMPLERS[p.process][n].draws_noise]


@pytest.mark.parametrize("strength", [0.3, 0.6])
@pytest.mark.parametrize(("name", "process"), QUIET)
def test_a_gaussian_ends_where_its_flow_ends(name: str, process: Process, strength: float) -> None:
    """Of data N(m, v) the flow keeps (x_t - a m) / sqrt(a^2 v + s^2), so an image x0 with the noise
    eps at the level (a, s) ends at m + sqrt(v) times that."""
    solver = solver_of(name, process, steps=500, strength=strength)
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(64, 1, 2, 2, generator=generator) for _ in range(2))
    t = solver.times[:1]
    a, s = process.scales(t)
    ratio = (VARIANCE / (a**2 * VARIANCE + s**2)).sqrt().item()
    wanted = MEAN + ratio * (a.item() * x0 + s.item() * eps - a.item() * MEAN)
    x_t = process.add_noise(x0, eps, t)
    for index, time in enumerate(solver.times):
        x_t = solver.step(ideal_x0(process, x_t, time).float(), x_t, index=index)
    assert root_mean_square(x_t - wanted) < 0.01 * root_mean_square(wanted - x0)


@pytest.mark.parametrize(("name", "process"), EVERY_SAMPLER)
def test_the_ideal_network_returns_a_little_noised_image(name, process, digits8) -> None:
    """At a low strength the posterior has one image left, the one that was started from."""
    labels = torch.arange(5)
    rows = [int((digits8.labels == label).nonzero()[7]) for label in labels]
    images = digits8.images[rows]
    generators = generators_from_seeds(range(5))
    sampling = Sampling(sampler=name, steps=20)
    solver = build_solver(process, sampling, generators=generators, strength=0.15)
    start = start_of(list(images), None, 0.15, count=5, shape=(1, 8, 8), fit="crop")
    noise = initial_noise((1, 8, 8), generators)
    assert start is not None
    x_t, same = begin(start, noise, solver, process, PixelCodec())
    assert same is solver
    sampled = sample(
        IdealDenoiser(digits8, process),
        solver,
        process=process,
        noise=x_t,
        tokens=tokens_of(labels),
        guidance=ClassifierFreeGuidance(1.0),
        x0_range=(-1.0, 1.0),
    )
    assert torch.equal(PixelCodec().decode(sampled.x0), images)


# Image to image by a model ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SAMPLERS["variance_preserving"]))
def test_strength_one_is_sampling_from_noise(name: str, small_model: Model, digit) -> None:
    settings = {"sampler": name, "steps": 4, "guidance": 2}
    plain = small_model.sample(PROMPT, range(3), **settings)
    started = small_model.sample(PROMPT, range(3), init_image=digit, strength=1, **settings)
    assert torch.equal(started.x0, plain.x0)


FIRST = {"DDIM": 5, "DDPM": 5, "EulerAncestral": 5, "Heun": 10}
"""Evaluation that the step from level 5 begins with: `t_start * scheduler.order` of diffusers."""


@pytest.mark.parametrize("name", FIRST)
def test_images_are_those_of_the_whole_schedule_begun_in_the_middle(
    name: str, small_model: Model, digit
) -> None:
    """As diffusers does it; for solvers that keep nothing of earlier steps it is the same."""
    model = small_model.with_(sampler=name, steps=10, guidance=1)
    ours = model.sample(PROMPT, 5, init_image=digit, strength=0.55, alone=False).x0
    generators = generators_from_seeds([5])
    whole = build_solver(model.process, model.sampling, generators=generators)
    noise, begun = initial_noise(model.shape, generators), FIRST[name]
    if name not in ("DDIM", "DDPM"):  # which count no steps
        whole.scheduler.set_begin_index(begun)
    x_t = model.process.add_noise(to_float(digit[None], (-1, 1)), noise, whole.times[begun][None])
    tokens = model.tokens([PROMPT])["cond"]
    for index in range(begun, len(whole.times)):
        t = whole.times[index][None]
        with torch.no_grad():
            output = model.network(x_t.float(), t, tokens, return_dict=False)[0]
        x0 = model.process.x0(output, x_t, t).clamp(-1, 1)
        x_t = whole.step(x0, x_t, index=index)
    torch.testing.assert_close(ours, x_t.clamp(-1, 1).float(), rtol=0, atol=1e-4)


def test_a_lower_strength_stays_nearer(small_model: Model, digit) -> None:
    def distance(strength: float) -> float:
        samples = small_model.sample(
            PROMPT, range(16), init_image=digit, strength=strength, steps=10
        )
        return float((samples.tensor.float() - digit.float()).square().mean())

    distances = [distance(strength) for strength in (0.1, 0.4, 0.7, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 0.1 * distances[-1]


def test_a_seed_is_one_image_alone_or_among_others(small_model: Model, digits8, half) -> None:
    images, masks = list(digits8.images[:20]), [half, ~half] * 10
    options = {"strength": 0.6, "steps": 4, "sampler": "EulerAncestral", "alone": False}
    many = small_model.sample(
        PROMPT, range(20), init_image=images, mask=masks, batch_size=7, **options
    )
    for row in (0, 13, 19):
        one = small_model.sample(PROMPT, row, init_image=images[row], mask=masks[row], **options)
        assert torch.equal(one.x0[0], many.x0[row])
        assert one.settings[0] == many.settings[row]


def test_an_image_says_what_it_started_from(small_model: Model, digits8, half) -> None:
    first, second = digits8.images[:2]
    samples = small_model.sample(PROMPT, [0, 1], init_image=[first, second], steps=10)
    assert [own["strength"] for own in samples.settings] == [0.8, 0.8]
    assert samples.settings[0]["first_t"] == 799
    assert samples.nfe == samples.settings[0]["nfe"] == 2 * 8
    hashes = {own["init_image_sha256"] for own in samples.settings}
    assert len(hashes) == 2
    masked = small_model.sample(PROMPT, 0, init_image=first, mask=half, steps=1).settings[0]
    assert masked["init_image_sha256"] in hashes
    assert masked["strength"] == 1.0
    assert len(masked["mask_sha256"]) == 64


# Known pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-0.7, 2.3)])
def test_every_pixel_value_survives_the_codec(value_range) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    codec = PixelCodec(value_range)
    assert torch.equal(codec.decode(codec.encode(every)), every)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize(("name", "process"), EVERY_SAMPLER)
def test_known_pixels_stay_and_leave_others_alone(name, process, strength, half, digit) -> None:
    """With a network of single pixels the others are what they are without a mask, bit for bit;
    the known ones are at every level what the process makes of them."""
    generators = generators_from_seeds([1, 2])
    noise = initial_noise((1, 8, 8), generators)
    state = [generator.get_state() for generator in generators]

    def drawn(mask) -> tuple[torch.Tensor, list[torch.Tensor]]:
        for generator, before in zip(generators, state, strict=True):
            generator.set_state(before)
        sampling = Sampling(sampler=name, steps=6)
        solver = build_solver(process, sampling, generators=generators, strength=strength)
        start = start_of(digit, mask, strength, count=2, shape=(1, 8, 8), fit="crop")
        assert start is not None
        x_t, solver = begin(start, noise, solver, process, PixelCodec())
        path = [x_t]
        for index, t in enumerate(solver.times):
            x0 = ideal_x0(process, x_t, t).to(x_t).clamp(-1, 1)
            x_t = solver.step(x0, x_t, index=index)
            path.append(x_t)
        return solver.times, path

    (times, path), (_, plain) = drawn(half), drawn(None)
    keep = ~half[None].expand_as(noise)
    for x_t, without in zip(path, plain, strict=True):
        assert torch.equal(x_t[~keep], without[~keep])
    known = to_float(digit, (-1.0, 1.0)).expand_as(noise)
    for x_t, t in zip(path, times, strict=False):
        assert torch.equal(x_t[keep], process.add_noise(known, noise, t[None])[keep])
    assert torch.equal(path[-1][keep], known[keep])


@pytest.mark.parametrize("name", ["DDIM", "Euler", "DPMSolver++", "UniPC", "PNDM", "LMS"])
def test_known_pixels_move_as_the_solver_moves_them(name: str, digit, half) -> None:
    """With x0 known and one noise, a solver without noise arrives where they are put back."""
    noise = initial_noise((1, 8, 8), generators_from_seeds([1]))
    x0 = to_float(digit[None], (-1.0, 1.0))
    solver = solver_of(name, COSINE, steps=12, strength=0.8)
    known = KnownPixels(solver, COSINE, x0=x0, eps=noise, keep=torch.ones_like(half[None]))
    x_t = known.put_back(noise, index=0)
    for index in range(len(solver.times)):
        x_t = solver.step(x0, x_t, index=index)
        torch.testing.assert_close(x_t, known.put_back(x_t, index=index + 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(SAMPLERS["variance_preserving"]))
def test_known_pixels_are_those_given(name: str, small_model: Model, digits8, half) -> None:
    images = list(digits8.images[:4])
    samples = small_model.sample(
        PROMPT, range(4), init_image=images, mask=half, sampler=name, steps=4, guidance=5
    )
    given = torch.stack(images)
    assert torch.equal(samples.tensor[:, :, :4], given[:, :, :4])
    assert not torch.equal(samples.tensor[:, :, 4:], given[:, :, 4:])


def test_known_pixels_stay_in_a_narrower_range_and_where_a_call_ends(
    small_model: Model, digit, half
) -> None:
    narrow = small_model.sample(PROMPT, init_image=digit, mask=half, x0_range=(-0.5, 0.5), steps=3)
    assert torch.equal(narrow.tensor[0, :, :4], digit[:, :4])
    assert float(narrow.x0[0, :, 4:].abs().max()) <= 0.5
    pipe = pipeline_of(small_model)

    def stop(pipe, index, t, tensors):
        pipe._interrupt = True
        return {}

    stopped = pipe(
        PROMPT,
        image=digit,
        mask_image=half,
        num_inference_steps=3,
        output_type="uint8",
        callback_on_step_end=stop,
    ).images
    assert torch.equal(stopped[0, :, :4], digit[:, :4])


# Files and their forms ----------------------------------------------------------------------------


def pictures(folder: Path) -> dict[str, Path]:
    """The same odd picture in many forms."""
    grey = np.random.default_rng(0).integers(0, 256, (30, 20), np.uint8)
    image = Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    forms = {
        "grey.png": (image, {}),
        "colour.png": (image.convert("RGB"), {}),
        "palette.gif": (image.convert("P"), {}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "turned.png": (image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
        "opaque.png": (image.convert("RGBA"), {}),
    }
    for name, (picture, options) in forms.items():
        picture.save(folder / name, **options)
    return {name: folder / name for name in forms}


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_a_file_becomes_the_pixels_that_training_makes_of_it(tmp_path: Path, fit: str) -> None:
    files = pictures(tmp_path)
    wanted, _ = decode(files["grey.png"], Target(resolution=8, channels=1, fit=fit))
    for name, file in files.items():
        for given in (file, str(file), Image.open(file)):
            start = start_of(given, None, None, count=1, shape=(1, 8, 8), fit=fit)
            assert start is not None
            assert np.array_equal(start.images[0].numpy(), wanted), (name, given)
    pixels = np.array(Image.open(files["grey.png"]))
    for given in (pixels, torch.from_numpy(pixels), torch.from_numpy(pixels)[None]):
        start = start_of(given, None, None, count=1, shape=(1, 8, 8), fit=fit)
        assert start is not None
        assert np.array_equal(start.images[0].numpy(), wanted)
    in_colour = start_of(files["grey.png"], None, None, count=1, shape=(3, 8, 8), fit=fit)
    assert in_colour is not None
    assert np.array_equal(in_colour.images[0].numpy(), np.repeat(wanted, 3, axis=0))


def test_a_large_photo_is_decoded_as_in_training(tmp_path: Path) -> None:
    """JPEGs at reduced scale: other pixels than of the whole picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    start = start_of(tmp_path / "photo.jpg", None, None, count=1, shape=(3, 8, 8), fit="crop")
    assert start is not None
    wanted, _ = decode(tmp_path / "photo.jpg", Target(resolution=8, channels=3, fit="crop"))
    assert np.array_equal(start.images[0].numpy(), wanted)


def test_transparency_is_white(tmp_path: Path) -> None:
    """As in training; of a mask it is painted anew."""
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 8, 4))
    start = start_of(clear, clear, None, count=1, shape=(1, 8, 8), fit="crop")
    assert start is not None
    assert start.paint is not None
    assert start.images[0, 0, :, 0].tolist() == [0] * 4 + [255] * 4
    assert start.paint[0, 0, :, 0].tolist() == [False] * 4 + [True] * 4


def test_a_mask_is_turned_resized_and_cut_as_its_image(tmp_path: Path) -> None:
    """White from a grey of 128 on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.new("L", (32, 16))  # on its side: 16 x 32 upright
    photo.save(tmp_path / "photo.jpg", exif=exif)
    mask = Image.new("L", (16, 32))
    mask.paste(255, (0, 16, 16, 32))
    mask.save(tmp_path / "mask.png")
    start = start_of(
        tmp_path / "photo.jpg", tmp_path / "mask.png", None, count=1, shape=(1, 8, 8), fit="crop"
    )
    assert start is not None
    assert start.paint is not None
    assert start.paint[0, 0].all(dim=1).tolist() == [False] * 4 + [True] * 4
    greys = np.full((8, 8), 127, np.uint8)
    greys[0, 0] = 128
    spot = start_of(np.zeros((8, 8), np.uint8), greys, None, count=1, shape=(1, 8, 8), fit="crop")
    assert spot is not None
    assert spot.paint is not None
    assert spot.paint.nonzero().tolist() == [[0, 0, 0, 0]]


def damaged(folder: Path, name: str) -> Path:
    file = folder / name
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    match name:
        case "moving.gif" | "moving.png" | "pages.tiff":
            frames[0].save(file, save_all=True, append_images=frames[1:])
        case "cut.gif":
            frames[0].save(file, save_all=True, append_images=frames[1:])
            file.write_bytes(file.read_bytes()[:-12])
        case "truncated.png":
            noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
            Image.fromarray(noise).save(file)
            file.write_bytes(file.read_bytes()[:2000])
        case "text.png":
            file.write_text("no picture")
        case "empty.png":
            file.write_bytes(b"")
        case "float.tiff":
            Image.fromarray(np.zeros((8, 8), np.float32)).save(file)
        case "folder":
            file.mkdir()
    return file


@pytest.mark.parametrize(
    "name",
    [
        *("moving.gif", "cut.gif", "moving.png", "pages.tiff", "truncated.png", "text.png"),
        *("empty.png", "float.tiff", "folder", "missing.png"),
    ],
)
def test_files_that_are_no_picture(name: str, small_model: Model, tmp_path: Path, refused) -> None:
    with refused(InputError, theirs=r"(?<=decoded \()[^)]*(?=\))"):
        small_model.sample(PROMPT, init_image=damaged(tmp_path, name))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.float32),
        torch.zeros(1, 8, 8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8), np.uint8),
        [],
        7,
        [np.zeros((8, 8), np.uint8)] * 2,
    ],
    ids=["floats", "float tensor", "two channels", "row", "empty", "none", "number", "two"],
)
def test_what_is_no_picture(image, small_model: Model, refused) -> None:
    with refused(InputError):
        small_model.sample(PROMPT, init_image=image)


@pytest.mark.parametrize("name", ["moving.gif", "truncated.png"])
def test_pillow_images_that_are_refused(name, small_model: Model, tmp_path: Path, refused) -> None:
    with (
        refused(InputError, theirs=r"(?<=decoded \()[^)]*(?=\))"),
        Image.open(damaged(tmp_path, name)) as image,
    ):
        small_model.sample(PROMPT, init_image=image)


def test_masks_that_are_refused(small_model: Model, digit, half, refused) -> None:
    for mask in (torch.ones_like(half), torch.zeros_like(half), half[:, :, :5], [half, half]):
        with refused(InputError):
            small_model.sample(PROMPT, init_image=digit, mask=mask)
    spot = np.zeros((800, 800), np.uint8)
    spot[3, 3] = 255
    with refused(InputError):
        small_model.sample(PROMPT, init_image=np.zeros_like(spot), mask=spot)
    with refused(InputError):
        small_model.sample(PROMPT, [1, 2, 3], init_image=[digit] * 2, mask=[half] * 3)
    for wrong in ({"mask": half}, {"strength": 0.5}):
        with refused(InputError):
            small_model.sample(PROMPT, **wrong)
    with refused(InputError):
        small_model.sample(PROMPT, init_image=digit, strength=0.01, steps=10)


# The pipeline -------------------------------------------------------------------------------------


def test_the_pipeline_samples_the_same(small_model: Model, digit, half, refused) -> None:
    pipe = pipeline_of(small_model)
    plain = {"num_inference_steps": 5, "output_type": "uint8", "seeds": [4, 5]}
    for strength, mask in ((0.6, None), (None, None), (0.6, half), (None, half)):
        ours = small_model.sample(
            PROMPT, [4, 5], init_image=digit, mask=mask, strength=strength, steps=5
        )
        theirs = pipe([PROMPT] * 2, image=digit, mask_image=mask, strength=strength, **plain).images
        assert torch.equal(ours.tensor, theirs)
    for wrong in (
        {"image": "photo.png"},
        {"image": digit, "mask_image": Path("mask.png")},
        {"mask_image": half},
        {"image": digit, "height": 16, "width": 16},
        {"image": digit, "strength": 2},
    ):
        with refused(InputError):
            pipe([PROMPT] * 2, **plain, **wrong)


# The command --------------------------------------------------------------------------------------


def save(image: torch.Tensor, path: Path) -> str:
    Image.fromarray(image[0].byte().numpy() * (255 if image.dtype == torch.bool else 1)).save(path)
    return str(path)


def test_the_command_samples_the_same(sfumato, small_run, small_model, digit, half, tmp_path):
    image, mask = save(digit, tmp_path / "digit.png"), save(half, tmp_path / "mask.png")
    command = ["sample", str(small_run), PROMPT, "--steps", "4", "--init-image", image]
    done = sfumato(*command, "--mask", mask, "--strength", "0.75", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    file = tmp_path / done.out.strip()
    assert file.name == "a-handwritten-digit-3-w3-strength0.75-seed0.png"
    ours = small_model.sample(PROMPT, init_image=image, mask=mask, strength=0.75, steps=4)
    assert file.read_bytes() == ours.png(0)
    written = settings_in_png(file)
    assert written["strength"] == "0.75"
    assert {"init_image_sha256", "mask_sha256"} < written.keys()


def test_a_file_of_prompts_starts_from_one_image(sfumato, small_run, digit, tmp_path: Path) -> None:
    """And another image, or another strength, is another set."""
    image, other = save(digit, tmp_path / "a.png"), save(255 - digit, tmp_path / "b.png")
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"prompt": PROMPT, "seed": seed, "steps": 4}) for seed in range(2))
    )
    command = ["sample", str(small_run), "--prompts-file", "prompts.jsonl", "--out", "out"]
    new = []
    for options in (
        ["--init-image", image],
        ["--init-image", image, "--strength", "0.8"],
        ["--init-image", image, "--strength", "0.5"],
        ["--init-image", other],
        [],
    ):
        done = sfumato(*command, *options, cwd=tmp_path)
        assert done.code == 0, done.err
        new.append(done.out.split(", ")[-1].split()[0])
    assert new == ["2", "0", "2", "2", "2"]


def test_the_command_warns_where_the_image_changes_nothing(
    sfumato, small_run, digit, tmp_path: Path
) -> None:
    image = save(digit, tmp_path / "digit.png")
    command = ["sample", str(small_run), PROMPT, "--steps", "2", "--init-image", image]
    assert "changes nothing" in sfumato(*command, "--strength", "1", cwd=tmp_path).err
    assert "changes nothing" not in sfumato(*command, cwd=tmp_path).err
    assert issubclass(LintWarning, UserWarning)
