"""Diffusion against CANs: closed forms of what is measured, the rule of verdicts, the command."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.base.errors import InputError
from sfumato.base.files import write_json
from sfumato.config.finetuning import OriginConfig
from sfumato.config.schema import CanExperiment, DiffusionExperiment, load_experiment
from sfumato.config.sections import CodecConfig
from sfumato.evaluation.baselines import changed_baselines
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.evaluation.metrics.novelty import NOVELTY, style_ambiguity
from sfumato.generation.loading import load
from sfumato.methods.can import collapse
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.paper.comparison import (
    Comparison,
    ComparisonConfig,
    labels_of,
    measure_comparison,
    prompts_for,
    through_codecs,
)
from sfumato.paper.comparison_claims import (
    Measured,
    claim_of,
    claims_of,
    effects_of,
    fair,
    times_of,
)
from sfumato.paper.training_time import core_seconds, processor_seconds
from sfumato.studies.study import ACCURACY, FRECHET, Study
from sfumato.studies.verdicts import HELD, NOT_HELD, UNDECIDED
from sfumato.training.records import append_record
from tests.conftest import CommandResult
from tests.test_can_model import runs  # noqa: F401 (a fixture)

# What is measured ---------------------------------------------------------------------------------


def test_style_ambiguity_in_closed_form() -> None:
    """log 2 / log K of two equal styles, 1 of all, 0 of one; others by numpy."""
    p = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4, [1, 0, 0, 0], [0.7, 0.1, 0.1, 0.1]])
    found = style_ambiguity((p.double() + 1e-300).log())
    entropy = -(0.7 * log(0.7) + 0.3 * log(0.1)) / log(4)
    np.testing.assert_allclose(found, [0.5, 1, 0, entropy], atol=1e-12)
    assert bool(style_ambiguity(torch.tensor([[0.0, 1e4]])).isfinite().all())
    with pytest.raises(ValueError, match="one style"):
        style_ambiguity(torch.zeros(3, 1))


def test_novelty_in_closed_form() -> None:
    """Training images at 0; test images 1 from it, generated ones 1 and 3: the mean is 2."""
    training = ImageFeatures(all_rows=torch.zeros(2, 2))
    test = ImageFeatures(
        all_rows=torch.tensor([[1.0, 0.0]]).repeat(20, 1), find_training=lambda: training
    )
    generated = ImageFeatures(all_rows=torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    assert NOVELTY.compute is not None
    found = NOVELTY.compute(generated, test)
    assert found is not None
    assert found.estimate.value == pytest.approx(2)
    assert found.values is not None
    assert found.values.tolist() == pytest.approx([1, 3])


def test_collapse() -> None:
    """Real images are as far apart as themselves; one image repeated is nowhere."""
    real = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    real = real.to(torch.uint8)
    assert collapse(real, real) == {"pairwise_distance": 1.0, "recall": 1.0}
    half = real[:20].repeat(2, 1, 1, 1)
    apart = (
        torch.pdist(half.double().flatten(1)).mean() / torch.pdist(real.double().flatten(1)).mean()
    )
    assert collapse(half, real)["pairwise_distance"] == pytest.approx(float(apart))
    assert collapse(real[:1].repeat(40, 1, 1, 1), real)["pairwise_distance"] == 0


def test_seconds_of_training() -> None:
    """Two starts, of 10 images a second on one core and 20 on three, and images that no record
    covers."""
    first, second = (
        {"images_per_second": 10.0, "processors": 1},
        {"images_per_second": 20.0, "processors": 3},
    )
    records = [
        {"images": 100, "seconds": 9.0, **first},
        {"images": 200, "seconds": 19.0, **first},
        {"images": 300, "seconds": 4.5, **second},
        {"images": 400, "seconds": 9.5, **second},
    ]
    assert processor_seconds(records, 400) == pytest.approx((19 + 3 * 9.5) * 400 / (190 + 190))
    assert processor_seconds(records, 200) == pytest.approx(20)
    assert processor_seconds(records, 100) == pytest.approx(10)
    assert processor_seconds([], 100) is None
    del records[1]["processors"]
    assert processor_seconds(records, 400) is None


def trained_folder(
    folder: Path, experiment: DiffusionExperiment, *, processors: int, **changes: object
) -> None:
    """10 seconds on a machine that has a GPU."""
    write_json(
        folder / "checkpoints" / "images-000000100" / "state.json",
        {
            "format": 1,
            "environment": {"accelerator": "a GPU"},
            "files": {},
            **changes,
        },
    )
    speed = {"images": 100, "seconds": 10.0, "images_per_second": 10.0, "processors": processors}
    append_record(folder / "timing.jsonl", speed)
    (folder / "experiment.yaml").write_text(experiment.to_yaml())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"device": "cpu", "processors": 3}, (30.0, "core")),
        ({"device": "cuda", "processors": 2}, (20.0, "a GPU")),
        ({"processors": 1}, (None, "")),
    ],
)
def test_core_seconds(changes: dict, wanted: tuple, small_run: Path, tmp_path: Path) -> None:
    experiment = load_experiment(small_run / "experiment.yaml", schema=DiffusionExperiment)
    trained_folder(tmp_path, experiment, **changes)
    assert core_seconds(tmp_path, 100) == wanted
    later = experiment.model_copy(update={"origin": OriginConfig(model="runs/first")})
    (tmp_path / "experiment.yaml").write_text(later.to_yaml())
    assert core_seconds(tmp_path, 100) == (None, "")


def test_core_seconds_of_latents_include_those_of_the_vae(small_run: Path, tmp_path: Path) -> None:
    pixels = load_experiment(small_run / "experiment.yaml", schema=DiffusionExperiment)
    codec = CodecConfig(kind="vae", vae=str(tmp_path / "vae"), factor=4)
    latents = pixels.model_copy(update={"codec": codec})
    trained_folder(tmp_path / "run", latents, device="cpu", processors=3)
    assert core_seconds(tmp_path / "run", 100) == (None, "")  # a VAE from elsewhere
    trained_folder(tmp_path / "vae", pixels, device="cpu", processors=6)
    assert core_seconds(tmp_path / "run", 100) == (90.0, "core")
    trained_folder(tmp_path / "vae", pixels, device="cuda", processors=1)
    assert core_seconds(tmp_path / "run", 100) == (None, "")  # hours of two kinds


# Verdicts -----------------------------------------------------------------------------------------


def measured(label: str, *, frechet: float, right: float, recall: int, **more) -> Measured:
    """1,000 images: a Frechet distance that hardly varies, a share that is right, a recall."""
    spread = 0.01 * torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    values = {FRECHET: frechet + spread, ACCURACY: torch.arange(1000) < 1000 * right}
    metrics = {
        FRECHET: Estimate(value=frechet, low=frechet, high=frechet, count=1000),
        ACCURACY: wilson(int(1000 * right), 1000),
        "recall.classifier": wilson(recall, 1000),
    }
    given = {"kind": "CAN" if label == "b" else "diffusion"}
    given |= {"seed": 0, "core_seconds": 100.0, "device": "core", "parameters": 10, **more}
    return Measured(label=label, metrics=metrics, values=values, **given)


def test_verdicts() -> None:
    good = {"frechet": 5.0, "right": 0.95, "recall": 800}
    bad = {"frechet": 50.0, "right": 0.6, "recall": 300}
    held = claim_of([measured("a", **good)], [measured("b", **bad)])
    assert (held.verdict, len(held.effects)) == (HELD, 3)
    assert held.effects[0].value == pytest.approx(45)
    assert held.effects[1].value == pytest.approx(0.5)
    assert "better by" not in held.sentence
    turned = claim_of([measured("a", **bad)], [measured("b", **good)])
    assert turned.verdict == NOT_HELD
    assert "better by: Frechet (classifier), recall (classifier), class accuracy" in turned.sentence
    mixed = claim_of([measured("a", **good)], [measured("b", **{**bad, "recall": 900})])
    names = [effect.what for effect in mixed.effects]
    assert names[0] == "Frechet (classifier), CAN less diffusion"
    assert names[1] == "recall (classifier), diffusion less CAN"
    assert mixed.verdict == NOT_HELD  # it needs all of them
    assert mixed.sentence.endswith(" b is better by: recall (classifier).")


def test_many_reference_images_make_no_interval_narrower() -> None:
    """Recall is a share of 10,000 reference images here, and varies with 1,000 generated ones."""
    few = measured("a", frechet=5.0, right=0.9, recall=500)
    many = replace(few, metrics={**few.metrics, "recall.classifier": wilson(5_000, 10_000)})
    other = measured("b", frechet=5.0, right=0.9, recall=450)
    alike = [effects_of(one, other)[1] for one in (few, many)]
    assert alike[0].measure == "recall.classifier"
    assert (alike[0].low, alike[0].high) == pytest.approx((alike[1].low, alike[1].high))


def test_class_accuracy_decides_nothing_at_w_0() -> None:
    run = measured("a", frechet=5.0, right=0.9, recall=500, conditional=False)
    other = measured("b", frechet=5.0, right=0.5, recall=500, conditional=False)
    assert [one.measure for one in effects_of(run, other)] == [FRECHET, "recall.classifier"]


def test_unequal_training_decides_nothing() -> None:
    """A side may win with less time, and lose with more."""
    wanted = {0.5: HELD, 1.2: HELD, 2: UNDECIDED, None: UNDECIDED}
    assert {times: fair(HELD, times) for times in wanted} == wanted
    wanted = {0.5: UNDECIDED, 0.9: NOT_HELD, 2: NOT_HELD, None: UNDECIDED}
    assert {times: fair(NOT_HELD, times) for times in wanted} == wanted
    good = {"frechet": 5.0, "right": 0.95, "recall": 800}
    bad = {"frechet": 50.0, "right": 0.6, "recall": 300}
    longer = measured("a", **good, core_seconds=300.0)
    assert times_of(longer, measured("b", **bad)) == 3
    claim = claim_of([longer], [measured("b", **bad)])
    assert claim.verdict == UNDECIDED
    assert "3 times as long" in claim.sentence
    other = measured("a", **good, device="a GPU")
    assert times_of(other, measured("b", **bad)) is None


def test_seeds_that_disagree() -> None:
    good = {"frechet": 5.0, "right": 0.95, "recall": 800}
    bad = {"frechet": 50.0, "right": 0.6, "recall": 300}
    both = [measured("a", **good), measured("a", **bad, seed=1)]
    agreed = claim_of([measured("a", **good)] * 2, [measured("b", **bad)] * 2)
    assert agreed.verdict == HELD
    split = claim_of(both, [measured("b", **bad), measured("b", **good, seed=1)])
    assert split.verdict == UNDECIDED
    assert f"Of 2 pairs of seeds: {HELD}, {NOT_HELD}." in split.sentence


def test_latents_are_compared_with_pixels_at_their_scale() -> None:
    good = {"frechet": 5.0, "right": 0.95, "recall": 800}
    bad = {"frechet": 50.0, "right": 0.6, "recall": 300}
    latent = {"kind": "latent diffusion", **good}
    found = claims_of(
        [
            measured("latent 2", **latent, scale="2"),
            measured("pixels 2", **bad, scale="2"),
            measured("pixels 5", **bad, scale="5"),
            measured("b", **bad),
            measured("plain", **bad, kind="CAN", conditional=False),
        ]
    )
    assert {one.key: one.verdict for one in found} == {
        "pixels 2 / b": NOT_HELD,
        "pixels 5 / b": NOT_HELD,
        "latent 2 / b": HELD,
        "latent 2 / pixels 2": HELD,
        "plain": UNDECIDED,
    }
    assert found[-2].effects[0].what == "Frechet (classifier), diffusion less latent diffusion"


def test_unequal_counts_are_paired_by_seed() -> None:
    """Seeds 0 and 1 against seed 1: the pair of 1 decides, and 0 is named."""
    good = {"frechet": 5.0, "right": 0.95, "recall": 800}
    bad = {"frechet": 50.0, "right": 0.6, "recall": 300}
    both = [measured("a", **bad), measured("a", **good, seed=1)]
    found = claim_of(both, [measured("b", **bad, seed=1)])
    assert found.verdict == HELD
    assert found.sentence.endswith("Not paired: a, seed 0.")
    none = claim_of(both, [measured("b", **bad, seed=7)])
    assert none.verdict == UNDECIDED
    assert none.sentence.endswith("Not paired: a, seed 0; a, seed 1; b, seed 7.")


# The study ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config() -> ComparisonConfig:
    return ComparisonConfig(count=40, classifier="untrained", baseline_pairs=2)


def test_comparison(runs: Path, small_run: Path, config, tmp_path: Path, refused) -> None:  # noqa: F811
    paths = (runs / "classes", runs / "plain")
    models = [load(small_run, device="cpu").with_(guidance=2, steps=2)]
    models += [load(path, device="cpu") for path in paths]
    found = measure_comparison(models, config, base=tmp_path / "page")
    assert [one.kind for one in found.models] == ["diffusion", "CAN", "CAN"]
    assert [one.nfe for one in found.models] == [4, 1, 1]
    assert [len(one.curve) for one in found.models][1:] == [2, 2]  # checkpoints at 48 and 96
    assert ACCURACY not in found.models[2].metrics
    for one in found.models:
        assert 0 <= one.metrics["style_ambiguity"].value <= 1
        assert one.metrics["novelty.classifier"].value > 0
    labels = [one.label for one in found.models]
    assert labels[1:] == ["tiny, classes", "tiny"]
    assert found.groups == {}
    paired, alone = found.claims
    assert paired.claim.endswith("w = 2 substantially outperforms tiny, classes")
    assert paired.verdict == alone.verdict == UNDECIDED  # times of training are not recorded
    assert "No diffusion model at w = 0" in alone.sentence
    page = (tmp_path / "page" / "comparison.md").read_text("utf-8")
    assert all(label in page for label in labels)
    assert "real test images" in page
    assert measure_comparison(models, config, base=tmp_path / "page").from_cache
    with refused(InputError):
        measure_comparison(models[:1], config, base=tmp_path / "one")
    with refused(InputError):
        measure_comparison([models[0], models[0]], config, base=tmp_path / "twice")


def test_what_a_codec_loses(small_model, config) -> None:
    """All four components of 2 x 2 pixels lose nothing, so the distance is that of the images as
    they are; one component loses much. A codec is there once."""
    study = Study.of(small_model, config)
    images = study.reference.images.images()
    fit = partial(fit_linear_codec, [images], factor=2)
    codecs = {"all, w = 2": fit(channels=4), "all, w = 0": fit(channels=4), "one": fit(channels=1)}
    whole, one = through_codecs(study, codecs)
    assert whole.title == "real images through the codec of all, w = 2"
    same = {"the same": torch.clone}
    [as_is] = changed_baselines(study.reference, "classifier", same, count=40, balanced=True)
    assert whole.frechet == pytest.approx(as_is.frechet, abs=1e-9)
    assert one.frechet > 5 * whole.frechet


def test_each_model_is_asked_in_its_own_words(small_model, runs: Path, config) -> None:  # noqa: F811
    """Whichever is given first; the classes are the same."""
    data = {**small_model.provenance["data"], "caption": ["number {word}"]}
    other = replace(small_model, provenance={**small_model.provenance, "data": data})
    study = Study.of(other, config)
    own = prompts_for(small_model, study)
    assert (own.prompts[7], prompts_for(other, study).prompts[7]) == (
        "A handwritten digit 7",
        "number seven",
    )
    assert own.labels is not None
    assert torch.equal(own.labels, study.prompts.labels)
    assert set(prompts_for(load(runs / "plain", device="cpu"), study).prompts) == {""}
    unknown = replace(small_model, provenance={})
    assert prompts_for(unknown, study) is study.prompts


def changed(run: Path, folder: Path, **values: object) -> Path:
    """A copy of a run, with other values in its experiment."""
    shutil.copytree(run, folder)
    experiment = load_experiment(run / "experiment.yaml", [f"{k}={v}" for k, v in values.items()])
    (folder / "experiment.yaml").write_text(experiment.to_yaml())
    return folder


def test_runs_of_other_settings_are_not_pooled(
    runs: Path,  # noqa: F811
    config,
    tmp_path: Path,
    refused,
) -> None:
    """Only the seed may differ; that differs where runs are pooled."""
    run = runs / "plain"
    copies = [
        run,
        changed(run, tmp_path / "b", seed=1),
        changed(run, tmp_path / "c", **{"training.ambiguity_weight": 0}),
    ]
    models = [load(path, device="cpu") for path in copies]
    weight = load_experiment(run / "experiment.yaml", schema=CanExperiment).training
    first = f"tiny, training.ambiguity_weight = {weight.ambiguity_weight}"
    assert labels_of(models) == [first, first, "tiny, training.ambiguity_weight = 0.0"]
    assert labels_of(models[:2]) == ["tiny", "tiny"]
    again = replace(models[0], provenance={**models[0].provenance, "weights_sha256": "other"})
    with refused(InputError):
        measure_comparison([models[0], again], config, base=tmp_path / "page")
    exported = replace(models[0], folder=None)
    sha256 = models[0].provenance["weights_sha256"]
    assert labels_of([models[0], exported]) == ["tiny", f"tiny, weights {sha256[:8]}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"split_seed": 1},
        {"test_share": 0.2},
        {"also_train": ["extra"]},
        {"source": "elsewhere"},
    ],
)
def test_models_of_other_images_are_refused(changes, small_model, config, tmp_path, refused):
    data = {**small_model.provenance["data"], **changes}
    about = {**small_model.provenance, "data": data, "weights_sha256": "other"}
    with refused(InputError):
        models = [small_model, replace(small_model, provenance=about)]
        measure_comparison(models, config, base=tmp_path / "page")


def test_command(
    sfumato: Callable[..., CommandResult],
    runs: Path,  # noqa: F811
    small_run: Path,
    tmp_path: Path,
) -> None:
    options = ["--count", "30", "--classifier", "untrained", "--device", "cpu", "--no-curves"]
    given = (f"{small_run}@1", str(runs / "classes"))
    found = sfumato("paper", "comparison", *given, *options, "--out", "page", cwd=tmp_path)
    assert found.code == 0, found.err
    assert UNDECIDED.upper() in found.out  # training times are not recorded
    card = Comparison.read(tmp_path / "page")
    assert [len(one.curve) for one in card.models] == [1, 1]
    wrong = sfumato("paper", "comparison", str(runs / "classes"), "nowhere", cwd=tmp_path)
    assert wrong.code == 2
