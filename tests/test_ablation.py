"""Ablations: what a variant is, how its curves are read, and that a stopped one goes on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.section import validate
from sfumato.config.ablation import Ablation, VariantConfig, ablation_names, load_ablation
from sfumato.studies.ablation import (
    AblationResult,
    Curve,
    Variant,
    is_reached,
    markdown,
    ratio_text,
    read_curve,
    run_ablation,
    run_folder,
)
from sfumato.training.records import ACCURACY, read_records

TINY = Ablation(
    name="tiny",
    seeds=(0, 1),
    levels=(0.5,),
    base="one",
    settings=(
        "data.resolution=8",
        "model.block_out_channels=[8,16]",
        "model.levels=[plain,attention]",
        "training.images=32",
        "training.accuracy_every_images=16",
        "evaluation.quick_count=10",
        "evaluation.quick_scales=[0,1]",
        "sampling.steps=2",
    ),
    variants={
        "one": VariantConfig(preset="digits"),
        "8 groups, eps": VariantConfig(
            preset="digits", settings=("diffusion.prediction_type=epsilon",)
        ),
    },
)


def curve(*correct: int) -> Curve:
    images = [100 * (i + 1) for i in range(len(correct))]
    return Curve(images=images, correct=list(correct), counts=[10] * len(correct))


def variant(name: str, *curves: Curve) -> Variant:
    return Variant(name=name, curves=dict(enumerate(curves)))


def test_images_to_a_level_are_the_median_seed_or_a_lower_bound() -> None:
    reached = variant("a", curve(1, 9, 10), curve(9, 9, 9), curve(1, 1, 9))
    assert reached.reached(0.9) == (200, 200)
    never = variant("b", curve(1, 2, 3, 4, 5, 6), curve(1, 2, 3, 4, 5, 6), curve(9))
    assert never.reached(0.9) == (math.inf, 600)
    assert reached.images_text(0.9) == "200"
    assert never.images_text(0.9) == "> 600"
    assert ratio_text(never, reached, 0.9) == "> 3.0x"
    assert ratio_text(reached, never, 0.9) == "-"
    assert ratio_text(reached, reached, 0.9) == "-"
    assert ratio_text(reached, variant("c", curve(9)), 0.9) == "2.0x"
    assert (reached.final.successes, reached.final.count) == (28, 30)


def test_each_line_of_a_curve_has_its_own_count() -> None:
    """`evaluation.quick_count` may change when a run goes on."""
    records = [
        {"images": 100, "count": 10, "correct": {"1": 6}},
        {"images": 200, "count": 20, "correct": {"1": 8}},
        {"images": 300, "count": 20, "correct": {"1": 14}},
    ]
    found = read_curve(records, "1")
    assert found.shares == [60, 40, 70]
    assert found.reached(0.7) == 300
    assert (found.final.successes, found.final.count) == (14, 20)
    both = variant("one", found, curve(5))
    assert (both.final.successes, both.final.count) == (19, 30)
    result = AblationResult(ablation=TINY, scale="1", classifier="c", variants=[both])
    assert "10 or 20 images at each evaluation" in markdown(result)


def test_a_run_ends_where_every_scale_has_reached_the_level() -> None:
    assert not is_reached([], 0.5)
    assert is_reached([{"count": 10, "correct": {"1": 5, "3": 9}}], 0.5)
    assert not is_reached([{"count": 10, "correct": {"1": 4, "3": 9}}], 0.5)


@pytest.mark.parametrize("name", ablation_names())
def test_every_arm_of_the_ablations_that_come_with_sfumato_is_an_experiment(name: str) -> None:
    ablation = load_ablation(name)
    experiments = {variant: ablation.experiment(variant, seed=1) for variant in ablation.variants}
    assert len({experiment.to_yaml() for experiment in experiments.values()}) == len(experiments)
    assert all(experiment.seed == 1 for experiment in experiments.values())
    quick = [one.evaluation for one in experiments.values()]
    assert len({(one.quick_count, one.quick_scales) for one in quick}) == 1
    assert load_ablation(name).levels[-1] == 0.98


def test_the_mnist_arms_are_the_presets() -> None:
    """`ours` is mnist-fast and `paper` is mnist, but for their length and how they are drawn."""
    from sfumato.config.schema import load_experiment

    ablation = load_ablation("mnist")
    for name, preset in (("ours", "mnist-fast"), ("paper, batch 512", "mnist")):
        found, there = ablation.experiment(name, seed=0), load_experiment(preset)
        assert found.model == there.model
        assert found.diffusion == there.diffusion
        assert found.data.value_range == there.data.value_range
        assert found.data.caption == there.data.caption
        assert found.text.max_tokens == there.text.max_tokens
        for setting in ("batch_size", "caption_dropout", "loss_weight", "optimizer"):
            assert getattr(found.training, setting) == getattr(there.training, setting), setting


def test_mistakes_are_named_before_anything_is_trained(tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        load_ablation("digit")
    with refused(InputError):
        load_ablation("mine.yaml")
    with refused(ValueError):
        Ablation(name="x", variants={"a": TINY.variants["one"]}, base="b")
    mistyped = VariantConfig(preset="digits", settings=("training.batchsize=2",))
    wrong = TINY.model_copy(update={"variants": {**TINY.variants, "b": mistyped}})
    with refused(ConfigError):
        run_ablation(wrong, tmp_path / "runs")
    blind = TINY.model_copy(update={"settings": TINY.settings[:4]})
    with refused(ConfigError):
        run_ablation(blind, tmp_path / "runs")
    for setting in ("evaluation.quick_count=20", "evaluation.quick_scales=[1,3]"):
        other = VariantConfig(preset="digits", settings=(setting,))
        uneven = TINY.model_copy(update={"variants": {**TINY.variants, "b": other}})
        with refused(ConfigError):
            run_ablation(uneven, tmp_path / "runs")
    record = {"images": 16, "count": 20, "correct": {"0": 3, "1": 4}}
    begun = run_folder(tmp_path / "begun", "one", 1) / ACCURACY
    begun.parent.mkdir(parents=True)
    begun.write_text(json.dumps(record) + "\n")
    with refused(ConfigError):
        run_ablation(TINY, tmp_path / "begun")
    with refused(InputError):
        run_ablation(TINY, tmp_path / "runs", only=["two"])
    with refused(InputError):
        run_ablation(TINY, tmp_path / "runs", seeds=[0, 7])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": dict.fromkeys(("one", "A, b", "a b"), TINY.variants["one"])},
        {"variants": dict.fromkeys(("one", ".."), TINY.variants["one"])},
        {"seeds": []},
        {"stop_at": 0},
        {"stop_at": 95},
    ],
    ids=["one folder", "no folder", "no seed", "level of 0", "level in per cent"],
)
def test_what_an_ablation_refuses(changes: dict[str, Any], refused) -> None:
    with refused(ConfigError):
        validate(Ablation, {**TINY.model_dump(), **changes}, source="mine.yaml")


@pytest.mark.slow
def test_arms_are_trained_once_and_all_are_read(tmp_path: Path) -> None:
    found = run_ablation(TINY, tmp_path, only=["one"], seeds=[1])
    assert found is not None
    assert list(found[0].variants[0].curves) == [1]
    found = run_ablation(TINY, tmp_path, only=["one"])
    assert found is not None
    assert [[variant.name for variant in one.variants] for one in found] == [["one"], ["one"]]
    lines = read_records(run_folder(tmp_path, "one", 1) / ACCURACY)
    assert [line["images"] for line in lines] == [16, 32]
    assert set(lines[0]["correct"]) == {"0", "1"}
    before = (run_folder(tmp_path, "one", 0) / ACCURACY).stat().st_mtime_ns
    found = run_ablation(TINY, tmp_path)
    assert found is not None
    assert (run_folder(tmp_path, "one", 0) / ACCURACY).stat().st_mtime_ns == before
    assert [variant.name for variant in found[1].variants] == ["one", "8 groups, eps"]
    assert run_folder(tmp_path, "8 groups, eps", 0).parent.name == "8-groups-eps"
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert record["curves"]["1"]["one"]["0"]["images"] == [16, 32]
    assert record["curves"]["1"]["one"]["0"]["counts"] == [10, 10]
    assert "| one |" in (tmp_path / "ablation.md").read_text()
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_level_that_is_reached_ends_the_run(tmp_path: Path) -> None:
    easy = TINY.model_copy(
        update={"stop_at": 0.01, "variants": {"one": TINY.variants["one"]}, "seeds": (0,)}
    )
    settings = [*easy.settings, "training.images=4800", "evaluation.quick_scales=[1]"]
    easy = easy.model_copy(update={"settings": tuple(settings)})
    found = run_ablation(easy, tmp_path)
    assert found is not None
    length = found[0].variants[0].curves[0].images[-1]
    assert length < 4800
    assert run_ablation(easy, tmp_path) is not None
    assert isinstance(found[0], AblationResult)
    assert read_records(run_folder(tmp_path, "one", 0) / ACCURACY)[-1]["images"] == length


@pytest.mark.slow
def test_the_command_prints_a_table(sfumato, tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(TINY.model_dump(mode="json")))
    result = sfumato("ablate", str(file), "--out", str(tmp_path / "runs"))
    assert result.code == 0, result.err
    assert "images to 50 %" in result.out
    assert "ablation.png" in result.out
