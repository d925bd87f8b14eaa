"""Ablations: variants that differ in a few settings, with several seeds each on equal images.

An ablation is a YAML file (`presets/ablations/`, or one of your own). Every variant and seed is an
ordinary run with quick evaluations: it can be sampled from, and goes on after a kill.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import ConfigError, InputError, nearest
from sfumato.base.files import write_bytes, write_json, write_text
from sfumato.config.ablation import Ablation, folder_name
from sfumato.config.schema import DiffusionExperiment
from sfumato.config.sections import EvaluationConfig
from sfumato.evaluation.classifier import load_classifier
from sfumato.evaluation.metrics.intervals import Estimate, wilson
from sfumato.methods.registry import run_experiment
from sfumato.report.page import markdown_table, png_of
from sfumato.training.hooks import BaseHook
from sfumato.training.loop import Hook, Run
from sfumato.training.records import ACCURACY, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Quick evaluations of one run at one guidance scale: `correct` of `counts` samples after each
    of `images` seen."""

    images: list[int]
    correct: list[int]
    counts: list[int]

    def reached(self, level: float) -> float:
        """Images seen at the first evaluation with at least `level`; infinite where there is
        none."""
        for images, correct, count in zip(self.images, self.correct, self.counts, strict=True):
            if correct >= level * count:
                return images
        return math.inf

    @property
    def shares(self) -> list[float]:
        """Class accuracies in per cent."""
        return [100 * a / b for a, b in zip(self.correct, self.counts, strict=True)]

    @property
    def final(self) -> Estimate:
        return wilson(self.correct[-1], self.counts[-1])


def read_curve(records: Sequence[Mapping[str, Any]], scale: str) -> Curve:
    """A curve from the lines of accuracy.jsonl; `InputError` where there are none at `scale`."""
    found = [record for record in records if scale in record["correct"]]
    if not found:
        raise InputError(f"No quick evaluation at w = {scale}.")
    return Curve(
        images=[record["images"] for record in found],
        correct=[record["correct"][scale] for record in found],
        counts=[record["count"] for record in found],
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
class Variant:
    """One variant's curves by seed, at one guidance scale."""

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
        return wilson(correct, sum(curve.counts[-1] for curve in self.curves.values()))

    def images_text(self, level: float) -> str:
        """`12,000`, or `> 16,000` where the median run never got there."""
        reached, bound = self.reached(level)
        return f"{reached:,.0f}" if math.isfinite(reached) else f"> {bound:,.0f}"


def ratio_text(base: Variant, variant: Variant, level: float) -> str:
    """How many times fewer images than `base`: `4.2x`, `> 4.2x` where the base never got there,
    `-` where the variant did not."""
    reached, bound = base.reached(level)
    own, _ = variant.reached(level)
    if variant is base or not math.isfinite(own):
        return "-"
    return f"{reached / own:.1f}x" if math.isfinite(reached) else f"> {bound / own:.1f}x"


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """All variants that have run so far, at one guidance scale."""

    ablation: Ablation
    scale: str
    classifier: str
    variants: Sequence[Variant]

    @classmethod
    def read(
        cls, ablation: Ablation, folder: Path, *, scale: str, classifier: str
    ) -> "AblationResult":
        """From the quick evaluations of every run in `folder`."""
        variants = []
        for name in ablation.variants:
            records = {
                seed: read_records(run_folder(folder, name, seed) / ACCURACY)
                for seed in ablation.seeds
            }
            curves = {seed: read_curve(own, scale) for seed, own in records.items() if own}
            if curves:
                variants.append(Variant(name=name, curves=curves))
        return cls(ablation=ablation, scale=scale, classifier=classifier, variants=variants)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: variant, seeds, accuracy at the end, images to each level, and how many
        times fewer these are than the base's."""
        base = next((one for one in self.variants if one.name == self.ablation.base), None)
        levels = self.ablation.levels
        header = ["variant", "seeds", "accuracy at the end", "lowest - highest seed"]
        header += [f"images to {100 * level:g} %" for level in levels]
        if base is not None:
            header += [f"fewer, to {100 * level:g} %" for level in levels]
        rows = []
        for one in self.variants:
            final, each = one.final, [100 * curve.final.value for curve in one.curves.values()]
            row = [one.name, str(len(one.curves)), str(final)]
            row += [f"{min(each):.1f} - {max(each):.1f} %"]
            row += [one.images_text(level) for level in levels]
            if base is not None:
                row += [ratio_text(base, one, level) for level in levels]
            rows.append(row)
        return header, rows


# Running ------------------------------------------------------------------------------------------


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    return folder / folder_name(variant) / f"seed-{seed}"


def run_ablation(
    ablation: Ablation,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str = "auto",
    log: Callable[[str], None] = lambda text: None,
    progress: Callable[[], Hook] | None = None,
) -> list[AblationResult] | None:
    """Train every variant and seed that has not run yet, and read all of them.

    `only`, `seeds`: what to train, all where empty; other runs in `folder` are read all the same.
    One result for each guidance scale of the quick evaluations; None where it was asked to stop.
    """
    _check_names(ablation, only, seeds)
    experiments = {
        (variant, seed): ablation.experiment(variant, seed, overrides)
        for variant in ablation.variants
        for seed in ablation.seeds
    }  # all of them first: a mistake in the last variant is reported before hours of training
    _check_evaluations(ablation, experiments)
    base = experiments[ablation.base, ablation.seeds[0]]
    _check_recorded([run_folder(folder, *one) for one in experiments], base.evaluation)
    classifier = load_classifier(base.data, base.evaluation.classifier, log=log)
    for seed in seeds or ablation.seeds:  # seed by seed: early on all variants can be seen
        for variant in only or ablation.variants:
            log(f"{variant}, seed {seed}")
            hooks = [progress()] if progress else []
            place = run_folder(folder, variant, seed)
            if not _train(experiments[variant, seed], place, ablation.stop_at, device, hooks):
                return None
    results = [
        AblationResult.read(ablation, folder, scale=f"{scale:g}", classifier=classifier.identity)
        for scale in base.evaluation.quick_scales
    ]
    _write(results, folder, experiments, overrides)
    return results


def _check_names(ablation: Ablation, only: Sequence[str], seeds: Sequence[int]) -> None:
    if unknown := [name for name in only if name not in ablation.variants]:
        raise InputError(
            f"No variant is named '{unknown[0]}'.",
            hint=nearest(unknown[0], list(ablation.variants)),
        )
    if others := [seed for seed in seeds if seed not in ablation.seeds]:
        own = ", ".join(str(seed) for seed in ablation.seeds)
        raise InputError(
            f"Seed {others[0]} is not one of the ablation's seeds: {own}.",
            hint="Take one of those, or name it under `seeds` in a YAML file of your own.",
        )


def _check_evaluations(
    ablation: Ablation, experiments: Mapping[tuple[str, int], DiffusionExperiment]
) -> None:
    """`ConfigError` for a variant with other quick evaluations than the base."""
    base = experiments[ablation.base, ablation.seeds[0]].evaluation
    for (variant, _), experiment in experiments.items():
        for name in ("quick_count", "quick_scales"):
            own, other = getattr(experiment.evaluation, name), getattr(base, name)
            if own != other:
                raise ConfigError(
                    f"ablation '{ablation.name}': evaluation.{name} is {own} in '{variant}' and "
                    f"{other} in '{ablation.base}', so that their curves cannot be compared.",
                    hint="Set it once, in the settings of the ablation.",
                )


def _check_recorded(places: Sequence[Path], wanted: EvaluationConfig) -> None:
    """`ConfigError` where a run was evaluated at other scales so far, or on another number of
    images: the rest of its curve would be another curve."""
    scales = [f"{scale:g}" for scale in wanted.quick_scales]
    for place in places:
        for record in read_records(place / ACCURACY):
            if set(record["correct"]) != set(scales) or record["count"] != wanted.quick_count:
                raise ConfigError(
                    f"{place} has quick evaluations of {record['count']} images at w = "
                    f"{', '.join(record['correct'])}; these settings evaluate "
                    f"{wanted.quick_count} at w = {', '.join(scales)}. They cannot be one curve.",
                    hint="Leave evaluation.quick_count and evaluation.quick_scales as they were, "
                    "or choose another --out.",
                )


def _train(
    experiment: DiffusionExperiment,
    place: Path,
    level: float | None,
    device: str,
    hooks: Sequence[Hook],
) -> bool:
    """Whether the run came to its end, or to `level` where there is one."""

    def reached() -> bool:
        return level is not None and is_reached(read_records(place / ACCURACY), level)

    if reached():
        return True
    if level is not None:
        hooks = [*hooks, StopAtLevel(place / ACCURACY, level)]
    run = run_experiment(experiment, place, device=device, hooks=hooks)
    return run.finished or reached()


# Writing ------------------------------------------------------------------------------------------


def _write(
    results: Sequence[AblationResult],
    folder: Path,
    experiments: Mapping[tuple[str, int], DiffusionExperiment],
    overrides: Sequence[str],
) -> None:
    """ablation.json with every evaluation, ablation.md and ablation.png."""
    ablation = results[0].ablation
    base = experiments[ablation.base, ablation.seeds[0]]
    curves = {
        one.scale: {
            variant.name: {str(seed): asdict(curve) for seed, curve in variant.curves.items()}
            for variant in one.variants
        }
        for one in results
    }
    record = {
        "ablation": ablation.model_dump(mode="json"),
        "overrides": list(overrides),
        "classifier": results[0].classifier,
        "samplers": {variant: asdict(one.sampling) for (variant, _), one in experiments.items()},
        "data": base.data.source,
        "curves": curves,
        "environment": environment(),
        "sfumato": __version__,
        "date": now(),
    }
    write_json(folder / "ablation.json", record)
    write_text(folder / "ablation.md", "\n".join(map(markdown, results)))
    write_bytes(folder / "ablation.png", chart(results))


def markdown(result: AblationResult) -> str:
    """The table with a line on how it came about."""
    curves = [curve for variant in result.variants for curve in variant.curves.values()]
    counts = sorted({count for curve in curves for count in curve.counts})
    how = (
        f"w = {result.scale}; {' or '.join(map(str, counts))} images at each evaluation; "
        f"classifier {result.classifier}. "
        "Images to a level: median over the seeds of the first evaluation at or above it; > : the "
        f"median run had not reached it at its end. Fewer: the images of '{result.ablation.base}' "
        "over those of the variant."
    )
    return f"{markdown_table(*result.table())}\n\n{how}\n"


def chart(results: Sequence[AblationResult]) -> bytes:
    """PNG: class accuracy over images seen, a panel for each guidance scale, a line for each
    variant (mean over the seeds, as far as all have come) with the seeds as a band and as thin
    lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(4.2 + 4.2 * len(results), 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, one in zip(panels, results, strict=True):
        for place, variant in enumerate(one.variants):
            is_base = variant.name == one.ablation.base
            style = {"color": "black", "ls": "--"} if is_base else {"color": f"C{place}", "ls": "-"}
            _plot(axes, variant, style)
        axes.set(xlabel="images seen", ylabel="class accuracy, %", ylim=(0, 101))
        axes.set_title(f"w = {one.scale}", fontsize=10)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return png_of(figure)


def _plot(axes: "Axes", variant: Variant, style: dict[str, Any]) -> None:
    curves = list(variant.curves.values())
    length = min(len(curve.images) for curve in curves)
    images = curves[0].images[:length]
    shares = list(zip(*(curve.shares[:length] for curve in curves), strict=True))
    for curve in curves:
        axes.plot(curve.images, curve.shares, lw=0.7, alpha=0.5, **style)
    mean = [fmean(each) for each in shares]
    axes.plot(images, mean, lw=1.8, label=variant.name, marker="o", ms=3, **style)
    low, high = [min(each) for each in shares], [max(each) for each in shares]
    axes.fill_between(images, low, high, color=style["color"], alpha=0.12, lw=0)
