"""From one prompt and seed to another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.base.images import settings_in_png
from sfumato.diffusion.interpolation import lerp, slerp
from sfumato.diffusion.sampling import initial_noise
from sfumato.diffusion.solvers.registry import SAMPLERS
from sfumato.generation.asked import generators_from_seeds
from sfumato.generation.export import pipeline_of
from sfumato.generation.model import Model

PROMPTS = ["A handwritten digit 3", "A handwritten digit 8"]
SEEDS = (4, 9)
PLACES = [0.0, 0.25, 0.5, 0.75, 1.0]
DRAWING = [name for name, one in SAMPLERS["variance_preserving"].items() if one.draws_noise]
QUIET = sorted(SAMPLERS["variance_preserving"].keys() - set(DRAWING))


def noise_of(*seeds: int, side: int = 16) -> torch.Tensor:
    return initial_noise((1, side, side), generators_from_seeds(seeds))


# The mathematics ----------------------------------------------------------------------------------


def test_slerp_in_closed_form() -> None:
    """A quarter of the circle in the plane."""
    ends = torch.eye(2).reshape(2, 1, 1, 2)
    places = [0.0, 1 / 3, 0.5, 1.0]
    angles = torch.tensor(places, dtype=torch.float64) * torch.pi / 2
    wanted = torch.stack([angles.cos(), angles.sin()], dim=1).float()
    torch.testing.assert_close(slerp(ends, places).reshape(4, 2), wanted)


def test_slerp_preserves_the_norm() -> None:
    """Of equal ends exactly; of two noises it stays between theirs, where a line loses 29 %."""
    first, last = noise_of(*SEEDS).double()
    last = last * first.norm() / last.norm()
    between = slerp(torch.stack([first, last]), [k / 20 for k in range(21)])
    norms = between.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, first.norm().expand(21), rtol=1e-12, atol=0)
    noise = noise_of(*SEEDS)
    middle = slerp(noise, [0.5]).norm() / noise.flatten(1).norm(dim=1).mean()
    assert float(middle) == pytest.approx(1, abs=0.01)
    straight = lerp(noise, [0.5]).norm() / noise.flatten(1).norm(dim=1).mean()
    assert float(straight) == pytest.approx(0.5**0.5, abs=0.05)


def test_noise_stays_standard_normal() -> None:
    """Of independent a, b with sin^2 + cos^2 weights: mean 0, variance 1."""
    noise = noise_of(1, 2, side=200)
    for between in slerp(noise, PLACES):
        assert float(between.mean()) == pytest.approx(0, abs=0.02)
        assert float(between.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("way", [lerp, slerp])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_ends_are_the_ends(way, dtype: torch.dtype) -> None:
    noise = noise_of(*SEEDS).to(dtype)
    assert torch.equal(way(noise, [0.0, 1.0]), noise)
    same = noise[[0, 0]]
    assert torch.equal(way(same, [0.3]), noise[:1])
    assert way(noise, PLACES).dtype == dtype
    assert bool(way(torch.stack([noise[0], -noise[0]]), PLACES).isfinite().all())


def test_lerp_is_the_line() -> None:
    ends = torch.tensor([[1.0, -2.0], [3.0, 6.0]])
    assert lerp(ends, [0.25, 0.5]).tolist() == [[1.5, 0.0], [2.0, 2.0]]


# By a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUIET)
def test_ends_are_plain_samples(name: str, small_model: Model) -> None:
    settings = {"sampler": name, "steps": 4, "negative_prompt": "A handwritten digit 1"}
    way = small_model.interpolate(PROMPTS, SEEDS, PLACES, **settings)
    plain = small_model.sample(PROMPTS, SEEDS, alone=False, **settings)
    assert torch.equal(way.x0[[0, -1]], plain.x0)
    assert len({image.numpy().tobytes() for image in way.tensor}) > 2


@pytest.mark.parametrize("name", DRAWING)
def test_a_sampler_that_draws_noise_needs_one_seed(name: str, small_model: Model, refused) -> None:
    settings = {"sampler": name, "steps": 4}
    way = small_model.interpolate(PROMPTS, 4, PLACES, **settings)
    plain = small_model.sample(PROMPTS, 4, alone=False, **settings)
    assert torch.equal(way.x0[[0, -1]], plain.x0)
    with refused(InputError):
        small_model.interpolate(PROMPTS, SEEDS, PLACES, **settings)


def test_a_frame_is_the_same_alone(small_model: Model) -> None:
    """Its settings say which it is."""
    places = [k / 32 for k in range(33)]
    way = small_model.interpolate(PROMPTS, SEEDS, places, steps=4, batch_size=20)
    for row in (0, 7, 25, 32):
        own = way.settings[row]
        ends = ([own["prompt"], own["to_prompt"]], [own["seed"], own["to_seed"]])
        alone = small_model.interpolate(*ends, [own["at"]], steps=own["steps"])
        assert torch.equal(alone.x0[0], way.x0[row])
        assert alone.settings[0] == own


def test_one_prompt_or_one_seed(small_model: Model) -> None:
    """Only the other changes on the way; with neither nothing does."""
    places = [0.0, 0.5, 1.0]
    by_seed = small_model.interpolate(PROMPTS[0], SEEDS, places, steps=4)
    plain = small_model.sample(PROMPTS[0], SEEDS, steps=4, alone=False)
    assert torch.equal(by_seed.x0[[0, -1]], plain.x0)
    still = small_model.interpolate(PROMPTS[0], 4, places, steps=4)
    assert torch.equal(still.x0, plain.x0[[0, 0, 0]])


def test_the_pipeline_draws_the_same_from_embeddings_and_noise(small_model: Model) -> None:
    pipe = pipeline_of(small_model)
    cond, uncond = pipe.encode_prompt(PROMPTS)
    images = pipe(
        prompt_embeds=lerp(cond, PLACES),
        negative_prompt_embeds=lerp(uncond, PLACES),
        latents=slerp(noise_of(*SEEDS, side=8), PLACES),
        num_inference_steps=4,
        output_type="uint8",
    ).images
    way = pipe.model.interpolate(PROMPTS, SEEDS, PLACES, steps=4)
    assert torch.equal(images, way.tensor)


def test_ways_that_are_refused(small_model: Model, refused) -> None:
    for prompts, seeds, at in (
        ([*PROMPTS, PROMPTS[0]], 0, PLACES),
        (PROMPTS, [1, 2, 3], PLACES),
        (PROMPTS, SEEDS, []),
        (PROMPTS, SEEDS, [0.5, 1.5]),
        (PROMPTS, SEEDS, [float("nan")]),
        ([], SEEDS, PLACES),
    ):
        with refused(InputError):
            small_model.interpolate(prompts, seeds, at, steps=2)


# The command --------------------------------------------------------------------------------------


def test_the_command_writes_frames(sfumato, small_run, small_model: Model, tmp_path: Path) -> None:
    command = ["sample", str(small_run), *PROMPTS, "--interpolate", "5", "--steps", "4"]
    done = sfumato(*command, "--seed", "4", "--last-seed", "9", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    folder = tmp_path / done.out.strip()
    assert folder.name == "a-handwritten-digit-3-to-a-handwritten-digit-8-seed4-to-9"
    way = small_model.interpolate(PROMPTS, SEEDS, PLACES, steps=4)
    for row in range(5):
        assert (folder / f"frame-{row:03}.png").read_bytes() == way.png(row)
    shared = settings_in_png(folder / "frames.png")
    assert shared["to_prompt"] == PROMPTS[1]
    assert "at" not in shared
    with Image.open(folder / "frames.gif") as gif:
        assert gif.n_frames == 5
        assert gif.size == (128, 128)
        for row in range(5):
            gif.seek(row)
            shown = np.asarray(gif.convert("L"))[8::16, 8::16]
            assert np.array_equal(shown, way.tensor[row, 0].numpy())
    again = sfumato(*command, "--out", "out", cwd=tmp_path)
    assert again.out.strip().endswith("-seed0-to-1")
    once_more = sfumato(*command, "--out", "out", cwd=tmp_path)
    assert once_more.out.strip().endswith("-seed0-to-1-2")
