"""Ablations: arms that differ in a few settings, several seeds each, equal images, one classifier.

An ablation is a YAML file (`presets/ablations/`, or one of your own). Every arm and seed is an
ordinary run with quick evaluations, so that it can be drawn from, and goes on after a kill.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import InputError, nearest
from sfumato.base.files import write_bytes, write_json, write_text
from sfumato.config.ablation import Ablation
from sfumato.config.schema import DiffusionExperiment
from sfumato.evaluation.classifier import load_classifier
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.methods.registry import run_experiment
from sfumato.training.hooks import BaseHook
from sfumato.training.loop import Hook, Run
from sfumato.training.records import ACCURACY, read_records


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Quick evaluations of one run at one guidance scale: `correct` of `count` images after each of
    `images` seen."""

    images: list[int]
    correct: list[int]
    count: int

    def reached(self, level: float) -> float:
        """Images seen at the first evaluation with at least `level`; infinite where there is
        none."""
        for images, correct in zip(self.images, self.correct, strict=True):
            if correct >= level * self.count:
                return images
        return math.inf

    @property
    def final(self) -> Estimate:
        return wilson(self.correct[-1], self.count)


def read_curve(records: Sequence[Mapping[str, Any]], scale: str) -> Curve:
    """A curve from the lines of accuracy.jsonl; `InputError` where there are none at `scale`."""
    found = [record for record in records if scale in record["correct"]]
    if not found:
        raise InputError(f"No quick evaluation at w = {scale}.")
    return Curve(
        images=[record["images"] for record in found],
        correct=[record["correct"][scale] for record in found],
        count=found[0]["count"],
    )


class StopAtLevel(BaseHook):
    """Asks the run to stop once its last quick evaluation has reached `level` at every scale."""

    def __init__(self, path: Path, level: float) -> None:
        self.path = path
        self.level = level
        self._read_at: int | None = None

    def after_step(self, run: Run, metrics: Mapping[str, Tensor]) -> None:
        changed = self.path.stat().st_mtime_ns if self.path.exists() else None
        if changed != self._read_at:
            self._read_at = changed
            if is_reached(read_records(self.path), self.level):
                run.stop_requested = True


def is_reached(records: Sequence[Mapping[str, Any]], level: float) -> bool:
    """Whether the last of `records` is at or above `level` at every scale."""
    return bool(records) and all(
        correct >= level * records[-1]["count"] for correct in records[-1]["correct"].values()
    )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm's curves by seed, at one guidance scale."""

    name: str
    curves: Mapping[int, Curve]

    def reached(self, level: float) -> tuple[float, float]:
        """Median over the seeds of the images to `level`, and a lower bound of it: a run that never
        got there would have needed more images than it saw. The first is infinite where most
        runs never got there."""
        return (
            median(curve.reached(level) for curve in self.curves.values()),
            median(min(curve.reached(level), curve.images[-1]) for curve in self.curves.values()),
        )

    @cached_property
    def final(self) -> Estimate:
        """Class accuracy at the end, all seeds together."""
        correct = sum(curve.correct[-1] for curve in self.curves.values())
        return wilson(correct, sum(curve.count for curve in self.curves.values()))

    def images_text(self, level: float) -> str:
        """`12,000`, or `> 16,000` where the median run never got there."""
        reached, bound = self.reached(level)
        return f"{reached:,.0f}" if math.isfinite(reached) else f"> {bound:,.0f}"


def ratio_text(base: Arm, arm: Arm, level: float) -> str:
    """How many times fewer images than `base`: `4.2x`, `> 4.2x` where the base never got there,
    `-` where the arm did not."""
    reached, bound = base.reached(level)
    own, _ = arm.reached(level)
    if arm is base or not math.isfinite(own):
        return "-"
    return f"{reached / own:.1f}x" if math.isfinite(reached) else f"> {bound / own:.1f}x"


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """All arms that have run so far, at one guidance scale."""

    ablation: Ablation
    scale: str
    classifier: str
    arms: Sequence[Arm]

    def table(self) -> list[list[str]]:
        """Header and rows: arm, seeds, accuracy at the end, images to each level, fewer images
        than the base by the last level that it is told of."""
        base = next((arm for arm in self.arms if arm.name == self.ablation.base), None)
        levels = self.ablation.levels
        rows = [
            [
                "arm",
                "seeds",
                "accuracy at the end",
                "lowest - highest seed",
                *(f"images to {100 * level:g} %" for level in levels),
                *([] if base is None else [f"fewer, to {100 * level:g} %" for level in levels]),
            ]
        ]
        for arm in self.arms:
            final, each = arm.final, [curve.final.value for curve in arm.curves.values()]
            rows.append(
                [
                    arm.name,
                    str(len(arm.curves)),
                    str(final),
                    f"{100 * min(each):.1f} - {100 * max(each):.1f} %",
                    *(arm.images_text(level) for level in levels),
                    *([] if base is None else [ratio_text(base, arm, level) for level in levels]),
                ]
            )
        return rows


# Running ------------------------------------------------------------------------------------------


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() or c in ".-" else "-" for c in arm.lower())
    while "--" in name:
        name = name.replace("--", "-")
    return folder / name.strip("-") / f"seed-{seed}"


def run_ablation(
    ablation: Ablation,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[], Hook] | None = None,
) -> list[Ablated] | None:
    """Train every arm and seed that has not run yet, and read all of them.

    `only`, `seeds`: what to train, all where empty; runs of others that lie in `folder` are read
    all the same, so that several processes can share the work. One result for each guidance scale
    of the quick evaluations; None where it was asked to stop.
    """
    if unknown := [name for name in only if name not in ablation.arms]:
        raise InputError(
            f"No arm is named '{unknown[0]}'.", hint=nearest(unknown[0], list(ablation.arms))
        )
    if others := [seed for seed in seeds if seed not in ablation.seeds]:
        own = ", ".join(str(seed) for seed in ablation.seeds)
        raise InputError(
            f"Seed {others[0]} is none of the ablation's: {own}.",
            hint="Take one of those, or name it under `seeds` in a YAML file of your own.",
        )
    experiments = {
        (arm, seed): ablation.experiment(arm, seed, overrides)
        for arm in ablation.arms
        for seed in ablation.seeds
    }  # all of them first: a mistake in the last arm is told before hours of training
    first = next(iter(experiments.values()))
    classifier = load_classifier(first.data, first.evaluation.classifier, log=say)
    for seed in seeds or ablation.seeds:  # seed by seed: early on all arms can be seen
        for arm in only or ablation.arms:
            place = run_folder(folder, arm, seed)
            level = ablation.stop_at
            if level is not None and is_reached(read_records(place / ACCURACY), level):
                continue
            say(f"{arm}, seed {seed}")
            run = run_experiment(
                experiments[arm, seed],
                place,
                device=device,
                hooks=[
                    *([progress()] if progress else []),
                    *([] if level is None else [StopAtLevel(place / ACCURACY, level)]),
                ],
            )
            early = level is not None and is_reached(read_records(place / ACCURACY), level)
            if not run.finished and not early:
                return None
    scales = [f"{scale:g}" for scale in first.evaluation.quick_scales]
    found = [
        Ablated(
            ablation=ablation,
            scale=scale,
            classifier=classifier.identity,
            arms=_arms(ablation, folder, scale),
        )
        for scale in scales
    ]
    of_arms = {arm: experiments[arm, ablation.seeds[0]] for arm in ablation.arms}
    _write(found, folder, of_arms, overrides)
    return found


def _arms(ablation: Ablation, folder: Path, scale: str) -> list[Arm]:
    arms = []
    for name in ablation.arms:
        curves = {}
        for seed in ablation.seeds:
            records = read_records(run_folder(folder, name, seed) / ACCURACY)
            if records:
                curves[seed] = read_curve(records, scale)
        if curves:
            arms.append(Arm(name=name, curves=curves))
    return arms


def _write(
    found: Sequence[Ablated],
    folder: Path,
    arms: Mapping[str, DiffusionExperiment],
    overrides: Sequence[str],
) -> None:
    """ablation.json with every evaluation, ablation.md and ablation.png."""
    ablation = found[0].ablation
    base = arms[ablation.base]
    write_json(
        folder / "ablation.json",
        {
            "ablation": ablation.model_dump(mode="json"),
            "overrides": list(overrides),
            "classifier": found[0].classifier,
            "samplers": {arm: asdict(one.sampling) for arm, one in arms.items()},
            "data": base.data.source,
            "curves": {
                one.scale: {
                    arm.name: {
                        str(seed): {"images": curve.images, "correct": curve.correct}
                        for seed, curve in arm.curves.items()
                    }
                    for arm in one.arms
                }
                for one in found
            },
            "count": base.evaluation.quick_count,
            "environment": environment(),
            "sfumato": __version__,
            "date": now(),
        },
    )
    write_text(folder / "ablation.md", "\n".join(markdown(one) for one in found))
    write_bytes(folder / "ablation.png", chart(found))


def markdown(found: Ablated) -> str:
    """The table with a line on how it came about."""
    header, *rows = found.table()
    lines = [
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    curve = next(iter(found.arms[0].curves.values()))
    how = (
        f"w = {found.scale}; {curve.count} images at each evaluation; classifier "
        f"{found.classifier}. Images to a level: median over the seeds of the first evaluation at "
        "or above it; > : the median "
        f"run had not reached it at its end. Fewer: the images of '{found.ablation.base}' over "
        "those of the arm."
    )
    return "\n".join([*lines, "", how, ""])


def chart(found: Sequence[Ablated]) -> bytes:
    """PNG: class accuracy over images seen, a panel for each guidance scale, a line for each arm
    (mean over the seeds, as far as all have come) with the seeds as a band and as thin lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(4.2 + 4.2 * len(found), 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, one in zip(panels, found, strict=True):
        for place, arm in enumerate(one.arms):
            length = min(len(curve.images) for curve in arm.curves.values())
            shares = [
                [100 * correct / curve.count for correct in curve.correct[:length]]
                for curve in arm.curves.values()
            ]
            images = next(iter(arm.curves.values())).images[:length]
            mean = [sum(values) / len(values) for values in zip(*shares, strict=True)]
            is_base = arm.name == one.ablation.base
            style: dict[str, Any] = {
                "color": "black" if is_base else f"C{place}",
                "ls": "--" if is_base else "-",
            }
            for curve in arm.curves.values():
                each = [100 * correct / curve.count for correct in curve.correct]
                axes.plot(curve.images, each, lw=0.7, alpha=0.5, **style)
            axes.plot(images, mean, lw=1.8, label=arm.name, marker="o", ms=3, **style)
            axes.fill_between(
                images,
                [min(values) for values in zip(*shares, strict=True)],
                [max(values) for values in zip(*shares, strict=True)],
                color=style["color"],
                alpha=0.12,
                lw=0,
            )
        axes.set(xlabel="images seen", ylabel="class accuracy, %", ylim=(0, 101))
        axes.set_title(f"w = {one.scale}", fontsize=10)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
