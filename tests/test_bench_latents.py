"""`sfumato bench latents`: what is timed, in which order, and what is said of it."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import ConfigError, InputError
from sfumato.bench import latents
from sfumato.bench.latents import KINDS, Cost, measure_latents
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.config.sections import CodecConfig

SMALL = ["model.block_out_channels=[8,16]", "model.levels=[plain,attention]", "sampling.steps=2"]
SMALL += [
    "model.norm_num_groups=2",
    "model.head_channels=8",
    "text.max_tokens=8",
    "sampling.guidance_scale=1",
]


@pytest.fixture(scope="module")
def experiment() -> DiffusionExperiment:
    return load_experiment("wikiart-tiny", SMALL, schema=DiffusionExperiment)


@pytest.mark.slow
def test_every_kind_at_every_side(experiment) -> None:
    """With a clock that counts its calls: each timing is 1, over a batch of 2."""
    ticks = itertools.count()
    found = measure_latents(
        experiment,
        resolutions=[8, 16],
        batch=2,
        rounds=3,
        device="cpu",
        clock=lambda: float(next(ticks)),
    )
    assert [(one.resolution, one.kind) for one in found] == [
        (side, kind) for side in (8, 16) for kind in KINDS
    ]
    for one in found:
        assert one.training == one.sampling == one.decoding == (0.5,) * 3
    assert next(ticks) == 2 * 2 * 4 * 8  # sides, readings, rounds with one to warm up, works


def test_networks_see_latents(experiment, monkeypatch) -> None:
    shapes = {}

    def noted(model, batch):
        shapes[type(model.codec).__name__] = tuple(model.shape)
        return lambda: None

    monkeypatch.setattr(latents, "_sampling", noted)
    measure_latents(experiment, resolutions=[16], channels=5, batch=2, rounds=1, device="cpu")
    assert shapes == {"PixelCodec": (3, 16, 16), "LinearCodec": (5, 4, 4), "VaeCodec": (5, 4, 4)}


def test_the_vae_is_on_the_device(experiment) -> None:
    data = experiment.data.model_copy(update={"resolution": 16})
    experiment = experiment.model_copy(update={"data": data, "codec": CodecConfig(kind="linear")})
    found = latents._codecs(experiment, None, torch.device("meta"))
    assert found["VAE"].vae.device.type == "meta"


def test_what_is_refused(experiment, refused) -> None:
    with refused(InputError):
        measure_latents(experiment, resolutions=[16], factor=3)
    with refused(ConfigError):
        measure_latents(experiment, resolutions=[16, 18])


def test_the_command(sfumato, tmp_path: Path, monkeypatch) -> None:
    costs = [
        Cost(
            kind=kind,
            resolution=32,
            training=(0.1 / (1 + place),) * 3,
            sampling=(1.0 / (1 + place),) * 3,
            decoding=(0.001 * place,) * 3,
        )
        for place, kind in enumerate(KINDS)
    ]
    monkeypatch.setattr(latents, "measure_latents", lambda experiment, **how: costs)
    found = sfumato("bench", "latents", "--resolutions", "32", "--out", "a.json", cwd=tmp_path)
    assert found.code == 0, found.err
    assert "32 px, PCA" in found.out
    assert found.out.splitlines()[2].split() == [
        "32",
        "px,",
        "PCA",
        "50.0",
        "2.00",
        "500.0",
        "2.00",
        "1.00",
    ]
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["factor"], len(record["costs"])) == (4, 3)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    wrong = sfumato("bench", "latents", "--resolutions", "32,x", cwd=tmp_path)
    assert "sides are whole numbers" in wrong.err
