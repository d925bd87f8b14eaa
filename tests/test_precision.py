"""Sampling in half precision and compiled: the same pictures to rounding, and they say so."""

import json
from pathlib import Path

import pytest
import torch

import sfumato as package
from sfumato.base.errors import InputError
from sfumato.base.images import settings_in_png
from sfumato.generation.model import Samples

PROMPTS = [f"A handwritten digit {digit}" for digit in range(10)]
LEAST_DB = {"float16": 55, "bfloat16": 42}
"""PSNR against float32, 6 steps at w = 2: the worst of the ten had 60.2 and 47.7."""


def drawn(run: Path, **loading) -> Samples:
    return package.load(run, device="cpu", **loading).sample(PROMPTS, range(10), guidance=2)


@pytest.fixture(scope="module")
def exact(small_model) -> Samples:
    return small_model.sample(PROMPTS, range(10), guidance=2)


def least_psnr(found: Samples, expected: Samples) -> float:
    """The worst of all images, in dB of the whole range of pixels."""
    error = (found.tensor.double() - expected.tensor.double()).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / error.clamp_min(1e-9))).min())


def test_float32_has_the_bits_and_the_settings_that_it_had(small_run: Path, exact) -> None:
    found = drawn(small_run, dtype="float32", compile=False)
    assert torch.equal(found.x0, exact.x0)
    assert found.settings == exact.settings
    assert not {"dtype", "compiled"} & set(found.settings[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.bfloat16])
def test_half_precision_is_the_same_picture_to_rounding(small_run: Path, exact, dtype) -> None:
    found = drawn(small_run, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert found.x0.dtype == torch.float32
    assert LEAST_DB[name] < least_psnr(found, exact) < 90
    assert found.settings == [{**one, "dtype": name} for one in exact.settings]


def test_only_the_network_computes_in_half(small_run: Path) -> None:
    """Noise, what the solver gets and what it gives are float32."""
    model = package.load(small_run, device="cpu", dtype="bfloat16")
    seen: list[torch.dtype] = []
    model.sample(PROMPTS[:1], on_step=lambda step: seen.extend([step.x_t.dtype, step.x0.dtype]))
    assert set(seen) == {torch.float32}
    assert next(model.network.parameters()).dtype == torch.bfloat16
    assert next(model.text_encoder.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float64", "half", "", torch.int8])
def test_another_dtype_is_refused(small_run: Path, dtype, refused) -> None:
    with refused(InputError):
        package.load(small_run, dtype=dtype)


def test_the_command_line_takes_it_and_pictures_and_cards_record_it(
    small_run: Path, tmp_path: Path, sfumato
) -> None:
    out, half = str(tmp_path / "out"), ("--device", "cpu", "--dtype", "bfloat16")
    assert sfumato("sample", str(small_run), PROMPTS[7], "--out", out, *half).code == 0
    assert sfumato("sample", str(small_run), PROMPTS[7], "--out", out, "--device", "cpu").code == 0
    said = [dict(settings_in_png(file)).get("dtype") for file in sorted(Path(out).glob("*.png"))]
    assert sorted(map(str, said)) == ["None", "bfloat16"]
    grid = str(tmp_path / "grid.png")
    assert sfumato("grid", str(small_run), PROMPTS[7], "--out", grid, *half).code == 0
    sections = ("evaluation.classifier=untrained", "evaluation.extractors=small-clip")
    small = [part for one in sections for part in ("--set", one)]
    card = ("--count", "20", "--scales", "2", "--out", str(tmp_path / "card"), *small)
    assert sfumato("evaluate", str(small_run), *card, *half).code == 0
    row = json.loads((tmp_path / "card" / "card.json").read_text())["rows"][0]
    assert row["settings"]["dtype"] == "bfloat16"
    wrong = sfumato("sample", str(small_run), PROMPTS[7], "--dtype", "half")
    assert wrong.code == 2
    assert "float32, float16, bfloat16" in wrong.err


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_pictures(small_run: Path, exact) -> None:
    """On a CPU it needs a C++ compiler and seconds a block."""
    found = drawn(small_run, compile=True)
    assert least_psnr(found, exact) > 60
    assert found.settings == [{**one, "compiled": True} for one in exact.settings]
