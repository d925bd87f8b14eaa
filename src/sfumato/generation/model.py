"""A trained model: immutable, it samples images from prompts and seeds.

This module is part of every export: what needs the rest of sfumato is imported by its name.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sfumato.base.errors import InputError
from sfumato.base.images import TEXT_PREFIX, ValueRange, png_bytes, to_pil
from sfumato.diffusion.guidance import CONVENTION, Branch, parse_guidance
from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import (
    EqualRows,
    Network,
    OnStep,
    Sampled,
    initial_noise,
    nfe_of,
    sample,
)
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import Sampling, TimestepSpacing, sampler_name, sampler_of
from sfumato.diffusion.solvers.schedulers import changed_settings
from sfumato.generation.asked import generators_from_seeds, negative_prompts, paired
from sfumato.models.codec import Codec
from sfumato.models.text_projection import text_projected_once
from sfumato.models.time_rows import time_in_rows
from sfumato.text.encoder import NULL, TextEncoder

if TYPE_CHECKING:
    import PIL.Image

    from sfumato.config.sections import DataConfig

CPU_ROWS = 16
"""Rows of a network call on a CPU: an image's bits then do not depend on its batch."""
LARGER_CPU_ROWS = (32, 64)
"""Used as well where they give the same bits: calls of 16 cost more time an image."""
FEWER_CPU_ROWS = (1, 2, 4, 8)
"""Used for fewer than 16 rows where they give the same bits."""
_CHECKED_ROWS: "WeakKeyDictionary[torch.nn.Module, dict]" = WeakKeyDictionary()
"""By network and dtype: which sizes give the same bits."""


@dataclass(frozen=True, kw_only=True)
class Samples(Sequence["PIL.Image.Image"]):
    """Images as a sequence of Pillow images, with everything needed to sample them again.

    `tensor`: uint8 (N, C, H, W) on the CPU; `x0`: the same as floats in the network's range;
    `settings`: of each image; `nfe`: network evaluations an image.
    """

    tensor: Tensor
    x0: Tensor
    settings: list[dict[str, Any]]
    nfe: int

    def __len__(self) -> int:
        return len(self.tensor)

    @overload
    def __getitem__(self, index: int) -> "PIL.Image.Image": ...
    @overload
    def __getitem__(self, index: slice) -> "list[PIL.Image.Image]": ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [to_pil(image) for image in self.tensor[index]]
        return to_pil(self.tensor[index])

    def png(self, index: int) -> bytes:
        """An image as PNG; its settings are in the text chunks."""
        text = {TEXT_PREFIX + key: str(value) for key, value in self.settings[index].items()}
        return png_bytes(to_pil(self.tensor[index]), text)

    def _repr_png_(self) -> bytes:
        """The images in a row, for notebooks."""
        from sfumato.base.images import grid

        buffer = io.BytesIO()
        to_pil(grid(self.tensor, min(len(self), 10), scale=2)).save(buffer, "PNG")
        return buffer.getvalue()


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
        """Where the network runs; a hook of accelerate keeps its weights elsewhere until then."""
        hook = getattr(self.network, "_hf_hook", None)
        runs_on = getattr(hook, "execution_device", None)
        own = next(self.network.parameters()).device
        return own if runs_on is None else torch.device(runs_on)

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
        try:
            sampling = replace(self.sampling, **changes)
        except ValueError as error:
            hint = "guidance_scale: 1 is no guidance, 2 to 5 is usual. steps: 1 or more."
            raise InputError(f"{error}.", hint=hint) from error
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

    def nfe(self) -> int:
        """Network evaluations an image."""
        solver = build_solver(self.process, self.sampling, scheduler=self.scheduler)
        guidance = self.sampling.form.build(scale=self.sampling.guidance_scale)
        return nfe_of(solver.times, self.process, guidance)

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: Any = 0,
        *,
        negative_prompt: str | Sequence[str | None] | None = NULL,
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
        seeds out of range.

        The same seed gives the same image, alone or among others. On a CPU that takes network
        calls of equal size; a single image is evaluated in the fewest rows with equal bits. On a
        machine where no fewer rows have them, it is evaluated by itself: its last bits differ from
        those in a set and its settings say `rows: 1`. `alone` decides: by default an only image
        is, and an image that belongs to a set takes `alone=False`.
        """
        model = self.with_(**changes)
        prompts, seeds = paired(prompts, seeds)
        negative = negative_prompts(negative_prompt, len(prompts))
        alone = len(prompts) == 1 if alone is None else alone
        model.nfe()  # settings out of range are refused before anything is said of the prompts
        model.text_encoder.check(
            [*prompts, *dict.fromkeys(negative)]
        )  # one warning for all batches
        parts: list[Sampled] = []
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            parts.append(
                model.denoise(
                    model.tokens(prompts[batch], negative[batch]),
                    generators_from_seeds(seeds[batch]),
                    x0_range=x0_range,
                    on_step=on_step,
                    alone=alone,
                )
            )
            if on_batch is not None:
                on_batch(len(prompts[batch]))
        x0 = torch.cat([part.x0 for part in parts])
        common = model.settings(first_t=parts[0].first_t, nfe=parts[0].nfe)
        if x0_range is not None:
            common["x0_range"] = list(x0_range)
        if parts[0].alone:
            common["rows"] = 1
        settings = [
            {"prompt": prompt, "seed": seed, **common}
            | ({} if against == NULL else {"negative_prompt": against})
            for prompt, seed, against in zip(prompts, seeds, negative, strict=True)
        ]
        tensor = model.codec.decode(x0).cpu()
        return Samples(tensor=tensor, x0=x0, settings=settings, nfe=parts[0].nfe)

    def denoise(
        self,
        tokens: Mapping[Branch, Tensor],
        generators: Sequence[torch.Generator],
        *,
        noise: Tensor | None = None,
        x0_range: ValueRange | None = None,
        on_step: OnStep | None = None,
        alone: bool = False,
    ) -> Sampled:
        """One batch from CPU generators, one an image: float images in the codec's range.

        `tokens`: of each branch, as `tokens` gives them; `noise`: (B, C, H, W) standard normal,
        else drawn from the generators; `alone`: as in `sample`.
        """
        sampling, codec, weak = self.sampling, self.codec, self.weak_network
        guidance = sampling.form.build(scale=sampling.guidance_scale, value_range=codec.x0_range)
        if guidance.away_from == "weak" and weak is None:
            raise InputError(
                "This model has no weaker network, which autoguidance needs.",
                hint="Load the run that it came from, or export that with autoguidance set.",
            )
        solver = build_solver(
            self.process, sampling, generators=generators, scheduler=self.scheduler
        )
        if noise is None:
            noise = initial_noise(self.shape, generators)
        networks = [self._network(one, alone) for one in (self.network, weak) if one is not None]
        on_cpu = self.device.type == "cpu"
        # Less work an operation than no_grad; the result is an ordinary tensor again.
        with torch.inference_mode(), ExitStack() as stack:
            for module in (self.network, weak):
                if module is not None and not self.compiled:  # it would be compiled again
                    stack.enter_context(text_projected_once(module))
                    stack.enter_context(time_in_rows(module, CPU_ROWS if on_cpu else 0))
            sampled = sample(
                networks[0],
                solver,
                process=self.process,
                noise=noise.to(self.device),
                tokens=dict(tokens),
                guidance=guidance,
                weak_network=None if weak is None else networks[1],
                x0_range=codec.x0_range if x0_range is None else x0_range,
                on_step=on_step,
            )
        by_itself = any(isinstance(one, EqualRows) and not one.exact for one in networks)
        return replace(sampled, x0=sampled.x0.clone(), alone=by_itself)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network was trained on."""
        config: Any = self.network.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

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
        if (dtype := next(self.network.parameters()).dtype) != torch.float32:
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
        """Captions for a look at the model, and a short label of each.

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
        return import_module("sfumato.data.records").load_records(self.data, "test").examples()

    def export(self, folder: str | Path) -> None:
        """Write a diffusers folder that samples with or without sfumato."""
        import_module("sfumato.generation.export").export_model(self, Path(folder))

    def tokens(
        self, prompts: Sequence[str], negative: Sequence[str] | None = None
    ) -> dict[Branch, Tensor]:
        """(B, L, D) in the network's dtype and on its device, for each branch.

        `negative`: B prompts that guidance leads away from, the empty one without it.
        """
        against = [NULL] * len(prompts) if negative is None else list(negative)
        both = self.text_encoder.tokens([*prompts, *against])
        cond, uncond = both.to(self.device, next(self.network.parameters()).dtype).chunk(2)
        return {"cond": cond, "uncond": uncond, "weak": cond}

    def _network(self, module: torch.nn.Module, alone: bool) -> Network:
        """A network as the sampling loop calls it; on a CPU in equal rows."""
        dtype = next(self.network.parameters()).dtype

        def network(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            return module(x_t.to(dtype), t, tokens, return_dict=False)[0]

        module.eval()
        if self.device.type != "cpu":
            return network
        checked = _CHECKED_ROWS.setdefault(module, {}).setdefault(dtype, {})
        return EqualRows(
            network,
            CPU_ROWS,
            larger=LARGER_CPU_ROWS,
            fewer=FEWER_CPU_ROWS,
            checked=checked,
            alone=alone,
        )
