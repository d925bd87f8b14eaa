"""The paper's findings: how claims are decided, what is sampled for them, and the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from sfumato.base.errors import InputError
from sfumato.base.images import to_uint8
from sfumato.evaluation.image_set import ImageSet
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.sampled_images import complete, sampled_set, stretched
from sfumato.generation.loading import load
from sfumato.paper.claims import GUIDED, NONE
from sfumato.paper.findings import FindingsConfig, measure_findings
from sfumato.studies.verdicts import (
    HELD,
    NOT_HELD,
    UNDECIDED,
    Effect,
    because,
    decide,
    opposite,
    together,
)
from tests.conftest import SMALL, CommandResult

Sfumato = Callable[..., CommandResult]

TINY = [
    *SMALL,
    "training.images=640",
    "training.batch_size=32",
    "training.log_every_images=32",
    "training.checkpoint_every_images=320",
    "sampling.sampler=DDPM",
    "sampling.steps=3",
]
"""Twenty steps: nothing is learned, but everything is there."""
OPTIONS = ["--count", "30", "--scales", "0,1,5", "--classifier", "untrained", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(together_runs: Path) -> tuple[Path, Path]:
    """A run without dropout, its values in [0, 1] as in the paper, and one with it."""
    return together_runs / "without", together_runs / "with"


@pytest.fixture(scope="module")
def together_runs(together: Path) -> Path:
    from sfumato.config.schema import load_experiment
    from sfumato.methods.registry import run_experiment

    folder = together / "findings-runs"
    without = ["training.caption_dropout=0", "data.value_range=[0,1]"]
    with FileLock(together / "findings.lock"):
        for name, settings in (("without", without), ("with", ["training.caption_dropout=0.1"])):
            run_experiment(load_experiment("digits", [*TINY, *settings]), folder / name)
    return folder


# Verdicts -----------------------------------------------------------------------------------------


def effect(value: float, low: float, high: float) -> Effect:
    return Effect(what="", measure="loss", value=value, low=low, high=high, margin=0.1)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (effect(0.5, 0.3, 0.7), HELD),
        (effect(0.12, 0.01, 0.3), HELD),
        (effect(0.05, 0.04, 0.06), NOT_HELD),  # there, and too small to matter
        (effect(0.0, -0.05, 0.05), NOT_HELD),
        (effect(-0.5, -0.7, -0.3), NOT_HELD),
        (effect(0.09, 0.01, 0.2), UNDECIDED),
        (effect(0.2, -0.1, 0.5), UNDECIDED),
        (effect(-0.1, -0.5, 0.3), UNDECIDED),
    ],
)
def test_one_rule_decides(found: Effect, verdict: str) -> None:
    assert decide(found) == verdict


def test_verdicts_join(refused) -> None:
    assert [opposite(one) for one in (HELD, NOT_HELD, UNDECIDED)] == [NOT_HELD, HELD, UNDECIDED]
    assert together([HELD, HELD]) == HELD
    assert together([HELD, UNDECIDED]) == UNDECIDED
    assert together([HELD, UNDECIDED, NOT_HELD]) == NOT_HELD
    with refused(ValueError):
        together([])


def test_a_cause_needs_an_effect_and_models_that_differ_in_it_alone() -> None:
    assert because(HELD, HELD, also_differ=[]) == HELD
    assert because(HELD, NOT_HELD, also_differ=[]) == NOT_HELD
    assert because(NOT_HELD, HELD, also_differ=["steps: 1 and 2"]) == NOT_HELD
    assert because(HELD, HELD, also_differ=["steps: 1 and 2"]) == UNDECIDED
    assert because(UNDECIDED, HELD, also_differ=[]) == UNDECIDED


# Sampling -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_by_its_images(runs: tuple[Path, Path], refused) -> None:
    without, _ = runs
    early, late = (load(without, device="cpu", checkpoint=n) for n in (320, 640))
    newest = load(without, device="cpu")
    assert late.provenance == newest.provenance
    assert early.provenance["images_seen"] == 320
    assert early.provenance["weights_sha256"] != late.provenance["weights_sha256"]
    with refused(InputError):
        load(without, checkpoint=321)
    with refused(InputError):
        load(without / "model", checkpoint=320)


@pytest.mark.slow
def test_x0_range_clamps_every_step(runs: tuple[Path, Path]) -> None:
    model = load(runs[0], device="cpu")

    def sampled(**arguments) -> tuple[torch.Tensor, list[torch.Tensor]]:
        steps = []
        found = model.sample(
            ["A handwritten digit 3"] * 2,
            [0, 1],
            guidance=GUIDED,
            on_step=lambda step: steps.append(step.x0),
            **arguments,
        )
        return found.x0, steps

    own, _ = sampled()
    assert float(own.min()) >= 0
    assert float(own.max()) <= 1
    same, _ = sampled(x0_range=(0.0, 1.0))
    assert torch.equal(own, same)
    clipped, steps = sampled(x0_range=(-1.0, 1.0))
    assert -1 <= float(clipped.min()) < 0  # an untrained network leaves the data's range
    assert all(float(x0.abs().max()) <= 1 for x0 in steps)


def test_stretched_uses_the_whole_range_of_each_image() -> None:
    x0 = torch.stack([torch.linspace(-0.5, 0.5, 64), torch.linspace(0, 0.25, 64), torch.ones(64)])
    images = stretched(x0.reshape(3, 1, 8, 8))
    assert images.amin(dim=(1, 2, 3)).tolist() == [0, 0, 0]
    assert images.amax(dim=(1, 2, 3)).tolist() == [255, 255, 0]
    # Half way down the first image lies black: the blank ground becomes a mid grey.
    assert abs(int(images[0].flatten()[32]) - 128) <= 2
    assert int(to_uint8(x0[0], (0.0, 1.0))[31]) == 0


@pytest.mark.slow
def test_the_clipped_arm_is_kept_twice_and_sampled_once(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    from sfumato.data.records import load_records

    model = load(runs[0], device="cpu")
    assert model.data is not None
    prompts = PromptSet.of(load_records(model.data, "reference"), 20)

    def sampled(scale: float, tensor: str = "images") -> ImageSet:
        return sampled_set(
            model,
            prompts,
            range(7, 27),
            guidance=scale,
            folder=tmp_path,
            x0_range=(-1.0, 1.0),
            tensor=tensor,
        )

    assert [sampled(scale).nfe for scale in (0.0, NONE, GUIDED)] == [3, 3, 6]
    done: list[tuple[int, int]] = []
    clipped = sampled(GUIDED)
    complete([clipped], lambda what, *counts: done.append(counts), what="network evaluations")
    assert done == [(0, 120), (120, 120)]
    assert sampled(GUIDED).missing() == []
    stretched_set = sampled(GUIDED, "stretched")
    assert stretched_set.missing() == []
    assert clipped.key != stretched_set.key
    first, second = clipped.images(), stretched_set.images()
    assert first.shape == second.shape == (20, 1, 8, 8)
    assert not torch.equal(first, second)


# The command --------------------------------------------------------------------------------------


def verdicts(folder: Path) -> dict[str, str]:
    return {claim["key"]: claim["verdict"] for claim in _json(folder)["claims"]}


def _json(folder: Path) -> dict:
    return json.loads((folder / "findings.json").read_text())


@pytest.mark.slow
def test_every_claim_has_a_verdict_and_nothing_is_sampled_twice(
    sfumato: Sfumato, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "findings"
    command = ["findings", *map(str, runs), *OPTIONS, "--out", str(out)]
    first = sfumato(*command)
    assert first.code == 0, first.err
    # Two variants at three scales (an NFE of 3, 3 and 6), the clipped and the early one at two.
    total = 30 * (2 * (3 + 3 + 6) + 2 * (3 + 6))
    assert f"{total:,} of {total:,} network evaluations" in first.out
    found = _json(out)
    assert {variant["key"] for variant in found["variants"]} == {
        "without",
        "clipped",
        "stretched",
        "early",
        "with",
    }
    assert found["seeds"] == [0, 29]
    assert found["variants"][0]["settings"]["model"]["weights_sha256"]
    assert found["also_differ"] == ["data.value_range: [0.0, 1.0] and [-1.0, 1.0]"]
    decided = verdicts(out)
    assert decided["loss_plateaus"] in (HELD, NOT_HELD, UNDECIDED)
    assert decided["longer_noise"] == UNDECIDED  # 0.7 epochs are not 20
    assert all(claim["sentence"] for claim in found["claims"])
    for name in ("findings.png", "examples.png", "loss.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    text = (out / "findings.md").read_text()
    assert text.count("| **") == len(found["claims"])

    files = sorted((tmp_path / "findings-images").glob("*/*.safetensors"))
    assert len(files) == 10
    before = {path: path.stat().st_mtime_ns for path in [*files, out / "findings.json"]}
    again = sfumato(*command)
    assert again.code == 0, again.err
    assert "From the cache" in again.out

    # Killed before the end: what was sampled stays, the rest is sampled again and the same.
    kept = load_file(files[0])["images"]
    files[0].unlink()
    (out / "findings.json").unlink()
    assert sfumato(*command).code == 0
    assert torch.equal(load_file(files[0])["images"], kept)
    assert {path: path.stat().st_mtime_ns for path in files[1:]}.items() <= before.items()
    same = _json(out)
    assert same["claims"] == found["claims"]
    assert [[one["metrics"] for one in variant["scales"]] for variant in same["variants"]] == [
        [one["metrics"] for one in variant["scales"]] for variant in found["variants"]
    ]

    # One run alone leaves claims open; its images are there, and other findings stay as they are.
    alone = sfumato("findings", str(runs[0]), *OPTIONS, "--out", str(out))
    assert alone.code == 0, alone.err
    assert sorted((tmp_path / "findings-images").glob("*/*.safetensors")) == files
    assert _json(out) == same
    decided = verdicts(tmp_path / "findings-2")
    assert decided["dropout_border_rms"] == decided["diversity_with"] == UNDECIDED
    assert "No run with caption dropout was given." in alone.out


@pytest.mark.slow
def test_what_is_no_pair_is_refused(runs: tuple[Path, Path], sfumato: Sfumato, refused) -> None:
    swapped = sfumato("findings", *map(str, reversed(runs)), *OPTIONS)
    assert swapped.code == 2
    assert "the first run is the one without dropout" in swapped.err
    few = sfumato("findings", str(runs[0]), "--count", "29")
    assert few.code == 2
    assert "29 images are too few" in few.err
    scales = sfumato("findings", str(runs[0]), "--scales", "0,5")
    assert scales.code == 2
    assert "1 and 5" in scales.err
    with refused(InputError):
        measure_findings(
            load(runs[0] / "model", device="cpu"),
            None,
            FindingsConfig(),
            base=runs[0] / "findings",
        )
