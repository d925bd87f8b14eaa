"""A trained model: immutable, it samples images from prompts and seeds.

This module is part of every export: what needs the rest of sfumato is imported by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.images import ValueRange
from sfumato.base.weights import compute_dtype, device_of
from sfumato.diffusion.guidance import CONVENTION, Branch, parse_guidance
from sfumato.diffusion.interpolation import lerp, slerp
from sfumato.diffusion.known import KnownPixels
from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import (
    EqualRows,
    OnStep,
    Sampled,
    Solver,
    initial_noise,
    nfe_of,
    sample,
)
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import Sampling, TimestepSpacing, sampler_name, sampler_of
from sfumato.diffusion.solvers.schedulers import changed_settings
from sfumato.generation.asked import (
    changed_sampling,
    check_negative,
    check_weak,
    ends_of,
    generators_from_seeds,
    negative_prompts,
    paired,
)
from sfumato.generation.rows import Calls, networks_in_rows
from sfumato.generation.samples import Samples
from sfumato.generation.start import Start, begin, start_of
from sfumato.models.codec import Codec
from sfumato.text.encoder import NULL, TextEncoder

if TYPE_CHECKING:
    from sfumato.config.sections import DataConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Network, forward process, codec and text encoder, and how they sample unless told otherwise.

    `provenance`: where the weights come from; `weak_network`: that of autoguidance; `scheduler`: a
    diffusers scheduler to sample with instead of our settings of it; `folder`: the run it was
    loaded from; `compiled`: whether the network is.
    """

    network: torch.nn.Module
    process: Process
    codec: Codec
    text_encoder: TextEncoder
    sampling: Sampling = field(default_factory=Sampling)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weak_network: torch.nn.Module | None = None
    scheduler: Any = None
    folder: Path | None = None
    compiled: bool = False

    @cached_property
    def data(self) -> "DataConfig | None":
        """The data set that it was trained on, where the provenance names it."""
        known = self.provenance.get("data")
        if known is None:
            return None
        return import_module("sfumato.config.sections").DataConfig.model_validate(known)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return device_of(self.network)

    def with_(
        self,
        *,
        guidance: float | None = None,
        form: str | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        timestep_spacing: TimestepSpacing | None = None,
    ) -> "Model":
        """The same model with other sampling settings; those not given stay.

        `guidance`: w of Eq. 1; `form`: of guidance, such as `apg:eta=0`. `InputError` for a value
        out of range, an unknown name, or autoguidance without a weaker network.
        """
        changes: dict[str, Any] = {
            "guidance_scale": guidance,
            "guidance": None if form is None else str(parse_guidance(form)),
            "sampler": None if sampler is None else sampler_name(sampler, self.process),
            "steps": steps,
            "timestep_spacing": timestep_spacing,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        if not changes:
            return self
        sampling = changed_sampling(self.sampling, changes)
        scheduler = self.scheduler if sampler is None and timestep_spacing is None else None
        model = replace(self, sampling=sampling, scheduler=scheduler)
        if form is None or not sampling.form.needs_weak_network:
            return model
        if self.folder is not None:
            return import_module("sfumato.generation.runs").with_weak_network(model)
        return model._with_exported_weak_network()

    def _with_exported_weak_network(self) -> "Model":
        """Autoguidance with the weaker network that an export carries."""
        form, weak = self.sampling.form, self.provenance.get("weak")
        if weak is None or dict(form.parameters)["images"] not in (0, weak["images_seen"]):
            raise InputError(
                f"This model has no weaker network for {form.label}.",
                hint="Load the run that it came from.",
            )
        guidance = f"autoguidance:images={weak['images_seen']}"
        return replace(self, sampling=replace(self.sampling, guidance=guidance))

    @property
    def title(self) -> str:
        """What tells a set of its images from others of the same model."""
        return f"w = {self.sampling.guidance_scale:g}"

    @property
    def draws_noise(self) -> bool:
        """Whether its sampler draws noise at every step, so that the first is not all."""
        return sampler_of(self.sampling.sampler, self.process).draws_noise

    def nfe(self, strength: float = 1.0) -> int:
        """Network evaluations an image, from a start image of that strength."""
        guidance = self.sampling.form.build(scale=self.sampling.guidance_scale)
        return nfe_of(self._solver((), strength=strength).times, self.process, guidance)

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: Any = 0,
        *,
        negative_prompt: str | Sequence[str | None] | None = NULL,
        init_image: Any = None,
        mask: Any = None,
        strength: float | None = None,
        x0_range: ValueRange | None = None,
        batch_size: int = 64,
        on_step: OnStep | None = None,
        on_batch: Callable[[int], None] | None = None,
        alone: bool | None = None,
        **changes: Any,
    ) -> Samples:
        """One image for each (prompt, seed); one prompt or one seed is repeated for all others.

        `seeds`: whole numbers, one or several, of Python, numpy or torch; `negative_prompt`: what
        guidance leads away from, one or one for each image, None is the empty prompt; `x0_range`:
        x0 is clamped to it at every step instead of the codec's range; `on_batch` gets the number
        of images of each batch; `changes`: as in `with_`. `InputError` for settings, prompts or
        seeds out of range, and images to start from that cannot be used (see `start_of`).

        `init_image`: a picture to start from, or one for each image: a path, a Pillow image or
        uint8 pixels. The last int(steps * `strength`) steps are done from it, 0.8 unless given; 1
        is from noise alone. `mask`: the same, white where it is painted anew; black pixels keep
        their values exactly, and the strength is 1 unless given.

        The same seed gives the same image, alone or among others. On a CPU that takes network
        calls of equal size; a single image is evaluated in the fewest rows with equal bits. On a
        machine where no fewer rows have them, it is evaluated by itself: its last bits differ from
        those in a set and its settings say `rows: 1`. `alone` decides: by default an only image
        is, and an image that belongs to a set takes `alone=False`.
        """
        model = self.with_(**changes)
        prompts, seeds = paired(prompts, seeds)
        count = len(prompts)
        negative = negative_prompts(negative_prompt, count)
        check_negative(model.sampling, negative)
        start = model.start(init_image, mask, strength, count=count)
        # Settings out of range are refused before anything is said of the prompts.
        model.nfe(1.0 if start is None else start.strength)
        # One warning for all batches.
        model.text_encoder.check([*prompts, *dict.fromkeys(negative)])

        def denoise(rows: slice) -> Sampled:
            return model.denoise(
                model.tokens(prompts[rows], negative[rows]),
                generators_from_seeds(seeds[rows]),
                start=None if start is None else start.part(rows),
                x0_range=x0_range,
                on_step=on_step,
                alone=count == 1 if alone is None else alone,
            )

        asked = [
            {"prompt": prompts[row], "seed": seeds[row]}
            | ({} if negative[row] == NULL else {"negative_prompt": negative[row]})
            | ({} if start is None else start.settings(row))
            for row in range(count)
        ]
        return model.collected(asked, denoise, batch_size, on_batch, x0_range, start)

    def interpolate(
        self,
        prompts: str | Sequence[str],
        seeds: Any,
        at: Sequence[float],
        *,
        negative_prompt: str = NULL,
        batch_size: int = 64,
        on_batch: Callable[[int], None] | None = None,
        **changes: Any,
    ) -> Samples:
        """Images on the way from one prompt and seed (at 0) to another (at 1), one at each of `at`.

        `prompts`, `seeds`: two of each, or one that both ends have. Encoded captions are
        interpolated along a line, noise along a circle. At 0 and 1 the images are those of `sample`
        in a set, bit for bit. `changes`: as in `with_`. `InputError` as `sample`, and for `at` out
        of 0 to 1, more than two ends, and two seeds where the sampler draws noise at every step.
        """
        model = self.with_(**changes)
        check_negative(model.sampling, [negative_prompt])
        ends = ends_of(prompts, seeds, at, model.sampling.sampler, model.process)
        (first, seed), (last, last_seed) = ends
        model.nfe()
        model.text_encoder.check([first, last, negative_prompt])
        tokens = model.tokens([first, last], [negative_prompt] * 2)
        noise = initial_noise(model.shape, generators_from_seeds([seed, last_seed]))

        def denoise(rows: slice) -> Sampled:
            generators = generators_from_seeds([seed] * len(at[rows]))
            initial_noise(model.shape, generators)  # drawn by a sampler only where seeds are one
            between = {branch: lerp(both, at[rows]) for branch, both in tokens.items()}
            return model.denoise(between, generators, noise=slerp(noise, at[rows]))

        asked = [
            {"prompt": first, "seed": seed, "to_prompt": last, "to_seed": last_seed, "at": f}
            | ({} if negative_prompt == NULL else {"negative_prompt": negative_prompt})
            for f in map(float, at)
        ]
        return model.collected(asked, denoise, batch_size, on_batch)

    def collected(
        self,
        asked: Sequence[dict[str, Any]],
        denoise: Callable[[slice], Sampled],
        batch_size: int,
        on_batch: Callable[[int], None] | None,
        x0_range: ValueRange | None = None,
        start: Start | None = None,
    ) -> Samples:
        """The images that `denoise` gives for rows of `asked`, the settings of each, with the
        pixels that `start` keeps."""
        parts: list[Sampled] = []
        for first in range(0, len(asked), batch_size):
            parts.append(denoise(slice(first, first + batch_size)))
            if on_batch is not None:
                on_batch(len(parts[-1].x0))
        x0 = torch.cat([part.x0 for part in parts])
        common = self.settings(first_t=parts[0].first_t, nfe=parts[0].nfe)
        if x0_range is not None:
            common["x0_range"] = list(x0_range)
        if parts[0].alone:
            common["rows"] = 1
        settings = [{"prompt": own["prompt"], "seed": own["seed"]} | common | own for own in asked]
        tensor = self.codec.decode(x0).cpu()
        tensor = tensor if start is None else start.keep(tensor)
        return Samples(tensor=tensor, x0=x0, settings=settings, nfe=parts[0].nfe)

    def start(
        self, init_image: Any, mask: Any = None, strength: float | None = None, *, count: int = 1
    ) -> Start | None:
        """What `count` images start from, brought to the size of this model; see `start_of`."""
        fit = self.provenance.get("data", {}).get("fit", "crop")
        return start_of(init_image, mask, strength, count=count, shape=self.image_shape, fit=fit)

    def denoise(
        self,
        tokens: Mapping[Branch, Tensor],
        generators: Sequence[torch.Generator],
        *,
        noise: Tensor | None = None,
        start: Start | None = None,
        x0_range: ValueRange | None = None,
        on_step: OnStep | None = None,
        alone: bool = False,
    ) -> Sampled:
        """One batch from CPU generators, one an image: x0 as the codec has it.

        `tokens`: of each branch, as `tokens` gives them; `noise`: (B, C, H, W) standard normal,
        else drawn from the generators; `start`: of this batch; `alone`: as in `sample`.
        """
        check_weak(self.sampling, self.weak_network)
        solver = self._solver(generators, strength=1.0 if start is None else start.strength)
        if noise is None:
            noise = initial_noise(self.shape, generators)
        x_t = noise.to(self.device)
        if start is not None:
            x_t, solver = begin(start, x_t, solver, self.process, self.codec)
        modules = [one for one in (self.network, self.weak_network) if one is not None]
        how = Calls(
            scale=self.sampling.guidance_scale,
            alone=alone,
            on_cpu=self.device.type == "cpu",
            compiled=self.compiled,
        )
        # Less work an operation than no_grad; the result is an ordinary tensor again.
        with torch.inference_mode(), networks_in_rows(modules, how) as networks:
            sampled = sample(
                networks[0],
                solver,
                process=self.process,
                noise=x_t,
                tokens=dict(tokens),
                guidance=self.sampling.form.build(scale=how.scale, value_range=self.codec.x0_range),
                weak_network=None if self.weak_network is None else networks[1],
                x0_range=self.codec.x0_range if x0_range is None else x0_range,
                on_step=on_step,
            )
        by_itself = any(isinstance(one, EqualRows) and not one.exact for one in networks)
        x0 = sampled.x0.clone()
        if isinstance(solver, KnownPixels):  # after the last clamping, and where a callback stopped
            x0 = solver.put_back(x0, index=len(solver.times))
        return replace(sampled, x0=x0, alone=by_itself)

    def _solver(self, generators: Sequence[torch.Generator], *, strength: float) -> Solver:
        return build_solver(
            self.process,
            self.sampling,
            generators=generators,
            scheduler=self.scheduler,
            strength=strength,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network was trained on: pixels, or latents."""
        config: Any = self.network.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was trained on."""
        return self.codec.image_shape(self.shape)

    def settings(self, **more: Any) -> dict[str, Any]:
        """What an image of this model depends on beside its prompt and seed."""
        from sfumato import __version__

        sampling, provenance = self.sampling, self.provenance
        weak = provenance.get("weak")
        uses_weak = weak is not None and sampling.form.needs_weak_network
        if self.scheduler is not None:
            sampler = sampler_of(sampling.sampler, self.process)
            if changed := changed_settings(self.scheduler, sampler):
                more["sampler_settings"] = changed
        if (dtype := compute_dtype(self.network)) != torch.float32:
            more["dtype"] = str(dtype).removeprefix("torch.")
        if self.compiled:
            more["compiled"] = True
        return {
            "guidance_scale": float(sampling.guidance_scale),
            "guidance": sampling.guidance,
            "guidance_convention": CONVENTION,
            "sampler": sampling.sampler,
            "timestep_spacing": sampling.timestep_spacing,
            "steps": sampling.steps,
            **more,
            "experiment": provenance.get("experiment", ""),
            "images_seen": provenance.get("images_seen", ""),
            "weights_sha256": provenance.get("weights_sha256", ""),
            "weak_weights_sha256": weak["weights_sha256"] if uses_weak else "",
            "text_encoder": provenance.get("text_encoder", ""),
            "sfumato": __version__,
        }

    def examples(self) -> tuple[list[str], list[str]]:
        """Captions for a look at the model, and a short label of each: of at most 32 classes.

        From the provenance where it names them, else from the data set. `InputError` for a model
        that knows neither.
        """
        if (known := self.provenance.get("examples")) is not None:
            return list(known), list(known.values())
        if self.data is None:
            raise InputError(
                "This model does not say which captions it was trained on.",
                hint="Give prompts after the model's folder.",
            )
        return import_module("sfumato.data.records").load_records(self.data, "test").examples(32)

    def export(self, folder: str | Path, *, space: bool = False) -> None:
        """Write a diffusers folder that samples with or without sfumato; as a `space` that is
        `folder`/model, with a page of Gradio beside it."""
        if space:
            import_module("sfumato.generation.space.writing").export_space(self, Path(folder))
        else:
            import_module("sfumato.generation.export").export_model(self, Path(folder))

    def tokens(
        self, prompts: Sequence[str], negative: Sequence[str] | None = None
    ) -> dict[Branch, Tensor]:
        """(B, L, D) in the network's dtype and on its device, for each branch.

        `negative`: B prompts that guidance leads away from, the empty one without it.
        """
        against = [NULL] * len(prompts) if negative is None else list(negative)
        both = self.text_encoder.tokens([*prompts, *against])
        cond, uncond = both.to(self.device, compute_dtype(self.network)).chunk(2)
        return {"cond": cond, "uncond": uncond, "weak": cond}
