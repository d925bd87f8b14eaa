"""`TextToImagePipeline`: caption in, image out, as a diffusers pipeline."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sfumato.base.errors import InputError
from sfumato.base.images import to_pil, to_uint8
from sfumato.base.marks import not_exported
from sfumato.base.section import ValueRange
from sfumato.diffusion.guidance import Branch, build_guidance, guidance_text, parse_guidance
from sfumato.diffusion.sampling import Network, Sampled, Step, in_equal_rows, initial_noise, sample
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.diffusion.solvers.schedulers import build_solver, diffusion_of
from sfumato.models.attention import text_projected_once
from sfumato.text.encoder import ClipTextEncoder
from sfumato.text.prompts import NULL, warn_of_cut_prompts

MAX_ENCODED_PROMPTS = 1024
"""Encoded prompts that a pipeline remembers between calls."""

CPU_ROWS = 16
"""Rows of a network call on a CPU: an image's bits then do not depend on its batch."""
LARGER_CPU_ROWS = (32, 64)
"""Used as well where they give the same bits: calls of 16 cost more time an image."""


def _unit(x0: Tensor, value_range: ValueRange) -> Tensor:
    """x0 in the value range to [0, 1]."""
    low, high = value_range
    return (x0 - low) / (high - low)


OUTPUT_TYPES: dict[str, Callable[[Tensor, ValueRange], Any]] = {
    "pil": lambda x0, value_range: [to_pil(image) for image in to_uint8(x0, value_range)],
    "pt": _unit,
    "np": lambda x0, value_range: _unit(x0, value_range).permute(0, 2, 3, 1).cpu().numpy(),
    "uint8": to_uint8,
}
"""(x0 (B, C, H, W), value range) to what a call returns."""


class TextToImagePipeline(DiffusionPipeline):
    """A pixel-space text-to-image model: U-Net, scheduler, frozen CLIP text encoder, tokenizer.

    Args:
        value_range: range of pixel values inside the network; x0 is clamped to it at every step.
        max_tokens: prompts are padded or cut to this many tokens.
        guidance_scale, num_inference_steps, guidance: used where a call does not give them;
            `guidance` is a form of guidance written short, like `apg:eta=0`.
        weak_unet: the weaker network of autoguidance, an earlier checkpoint of the same run.
        provenance: which run, checkpoint and data the weights come from.
    """

    _optional_components = ["weak_unet"]  # noqa: RUF012, the name and type of diffusers

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        value_range: list | tuple = (-1.0, 1.0),
        max_tokens: int = 77,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 20,
        guidance: str = "cfg",
        weak_unet: UNet2DConditionModel | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weak_unet=weak_unet,
        )
        self.register_to_config(
            value_range=list(value_range),
            max_tokens=max_tokens,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            guidance=guidance_text(*parse_guidance(guidance)),
            provenance=provenance or {},
        )
        self._encoded: dict[str, Tensor] = {}
        self._encoded_by: tuple[CLIPTextModel, torch.dtype, torch.device] | None = None
        self._checked_rows: WeakKeyDictionary[torch.nn.Module, dict] = WeakKeyDictionary()

    @classmethod
    @not_exported
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "TextToImagePipeline":
        """As in diffusers; `bundled:NAME` is a model that comes with sfumato.

        Of a bundle only `torch_dtype` is taken from `kwargs`, and what says how files are read is
        passed over. Raises `InputError` for an unknown NAME or other arguments,
        `DamagedDataError` for a bundle of which a file was altered.
        """
        from sfumato.generation.bundle_names import is_bundle, model_folder
        from sfumato.generation.bundles import open_bundle

        if not is_bundle(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        dtype = kwargs.pop("torch_dtype", None)
        if unknown := kwargs.keys() - {"low_cpu_mem_usage", "use_safetensors", "local_files_only"}:
            raise InputError(
                f"{pretrained_model_name_or_path} is not opened with {min(unknown)}.",
                hint="Change the pipeline once it is open, or `sfumato export` it first.",
            )
        pipeline = open_bundle(model_folder(pretrained_model_name_or_path))
        return pipeline if dtype is None else pipeline.to(dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        guidance_scale: float | None = None,
        guidance: str | None = None,
        num_inference_steps: int | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        negative_prompt: str = NULL,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], Any] | None = None,
    ) -> Any:
        """Draw one image for each prompt.

        Args:
            prompt: one prompt or B of them.
            guidance_scale: w of Eq. 1; 0 is unconditional, 1 conditional without guidance.
            guidance: form of guidance: `cfg`, `interval:low=0.28,high=2.9`, `apg`, ...
            num_inference_steps: denoising steps, 1 to T.
            seeds: one seed an image; the same seed gives the same image, alone or among others.
            generator: B CPU generators, or one for a single image, instead of seeds.
            negative_prompt: what guidance leads away from; the empty prompt as in training.
            output_type: `pil`, `pt` (float (B, C, H, W) in [0, 1]), `np` (the same as an array,
                (B, H, W, C)) or `uint8` (B, C, H, W).
            callback_on_step_end: called with (pipeline, index, timestep, tensors) after every
                network evaluation; the tensors are `latents`, the x_t after it, and `x0`.

        Returns:
            `ImagePipelineOutput(images)`, or a tuple with the images.

        Raises:
            InputError: no prompt, an output type that is not known, or seeds, steps or guidance
                out of range.
        """
        if output_type not in OUTPUT_TYPES:
            raise InputError(
                f"output_type '{output_type}' is not known.",
                hint=f"Use one of {', '.join(OUTPUT_TYPES)}.",
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)

        def on_step(step: Step) -> None:
            if callback_on_step_end is not None:
                state = {"latents": step.x_t, "x0": step.x0}
                callback_on_step_end(self, step.index, step.t, state)

        sampled = self.sample(
            prompts,
            generators=_generators(len(prompts), seeds, generator),
            guidance_scale=guidance_scale,
            guidance=guidance,
            num_inference_steps=num_inference_steps,
            negative_prompt=negative_prompt,
            on_step=on_step,
        )
        images = OUTPUT_TYPES[output_type](sampled.x0, self._value_range)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        generators: Sequence[torch.Generator],
        guidance_scale: float | None = None,
        guidance: str | None = None,
        num_inference_steps: int | None = None,
        negative_prompt: str = NULL,
        x0_range: ValueRange | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Sampled:
        """As a call, but with float images in the value range and the number of network calls.

        `x0_range`: x0 is clamped to it at every step instead of the value range, and the images
        lie in it: how a sampler that knows nothing of the data clips.
        """
        scale = self.config["guidance_scale"] if guidance_scale is None else guidance_scale
        steps = (
            self.config["num_inference_steps"]
            if num_inference_steps is None
            else num_inference_steps
        )
        diffusion = diffusion_of(self.scheduler)
        check_sampling_arguments(
            prompts,
            guidance_scale=scale,
            steps=steps,
            num_train_timesteps=diffusion.num_train_timesteps,
        )
        device, dtype = self.unet.device, self.unet.dtype
        form = build_guidance(
            *parse_guidance(self.config["guidance"] if guidance is None else guidance),
            scale=scale,
            value_range=self._value_range,
        )
        if form.away_from == "weak" and self.weak_unet is None:
            raise InputError(
                "This pipeline has no weak_unet, the weaker network that autoguidance needs.",
                hint="Draw from the run's folder, or export it with autoguidance in "
                "sampling.guidance.",
            )

        def network_of(unet: UNet2DConditionModel) -> Network:
            def network(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
                return unet(x_t.to(dtype), t, tokens, return_dict=False)[0]

            unet.eval()
            if device.type != "cpu":
                return network
            checked = self._checked_rows.setdefault(unet, {}).setdefault(dtype, {})
            return in_equal_rows(network, CPU_ROWS, larger=LARGER_CPU_ROWS, checked=checked)

        size = self.unet.config["sample_size"]
        shape = (self.unet.config["in_channels"], size, size)
        # Less work an operation than no_grad; what leaves is an ordinary tensor again.
        with torch.inference_mode(), ExitStack() as stack:
            for unet in (self.unet, self.weak_unet):
                if unet is not None:
                    stack.enter_context(text_projected_once(unet))
            sampled = sample(
                network_of(self.unet),
                build_solver(self.scheduler, steps=steps, generators=generators),
                schedule=NoiseSchedule.from_config(diffusion),
                prediction_type=diffusion.prediction_type,
                noise=initial_noise(shape, generators).to(device),
                tokens=self._tokens(prompts, negative_prompt),
                guidance=form,
                weak_network=None if self.weak_unet is None else network_of(self.weak_unet),
                value_range=self._value_range if x0_range is None else x0_range,
                on_step=on_step,
            )
        return replace(sampled, x0=sampled.x0.clone())

    def _tokens(self, prompts: Sequence[str], negative_prompt: str) -> dict[Branch, Tensor]:
        """(B, L, D) in the U-Net's dtype for each branch; a distinct prompt is encoded once."""
        # Encoding in another dtype or on another device gives other numbers.
        encoded_by = (self.text_encoder, self.text_encoder.dtype, self.text_encoder.device)
        if self._encoded_by != encoded_by or len(self._encoded) > MAX_ENCODED_PROMPTS:
            self._encoded, self._encoded_by = {}, encoded_by
        new = [p for p in dict.fromkeys([negative_prompt, *prompts]) if p not in self._encoded]
        if new:
            encoder = ClipTextEncoder(
                self.text_encoder,
                self.tokenizer,
                name=self.text_encoder.name_or_path,
                max_tokens=self.config["max_tokens"],
            )
            warn_of_cut_prompts(encoder.cut(new), encoder.max_tokens)
            tokens = encoder.encode(new).tokens.float().cpu()
            self._encoded.update(zip(new, tokens, strict=True))
        cond, uncond = (
            torch.stack([self._encoded[p] for p in wanted]).to(self.unet.device, self.unet.dtype)
            for wanted in (prompts, [negative_prompt] * len(prompts))
        )
        return {"cond": cond, "uncond": uncond, "weak": cond}

    @property
    def _value_range(self) -> ValueRange:
        low, high = self.config["value_range"]
        return (low, high)


def check_sampling_arguments(
    prompts: Sequence[str], *, guidance_scale: float, steps: int, num_train_timesteps: int = 1000
) -> None:
    """`InputError` for an empty prompt list, or guidance or steps out of range."""
    if not prompts:
        raise InputError("There is no prompt.", hint="Give at least one, in quotes.")
    if not 0 <= guidance_scale <= 1000:
        raise InputError(
            f"Guidance scale {guidance_scale:g} is out of range.",
            hint="It lies between 0 (unconditional) and 1000; 1 is no guidance, 2 to 5 is usual.",
        )
    if not 1 <= steps <= num_train_timesteps:
        raise InputError(
            f"{steps} steps are out of range.", hint=f"Give 1 to {num_train_timesteps}."
        )


def generators_from_seeds(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a seed; `InputError` for a seed that torch cannot take."""
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise InputError(f"Seed {seed} is out of range.", hint="Give 0 to 2**63 - 1.")
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _generators(
    count: int,
    seeds: Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> list[torch.Generator]:
    if seeds is not None and generator is not None:
        raise InputError("Give seeds or generators, not both.")
    if seeds is not None:
        generators = generators_from_seeds(seeds)
    elif generator is None:
        generators = generators_from_seeds([secrets.randbits(62) for _ in range(count)])
    else:
        generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if any(generator.device.type != "cpu" for generator in generators):
        raise InputError(
            "Noise is drawn on the CPU, the same for every device.",
            hint="Give seeds, or generators made with torch.Generator('cpu').",
        )
    if len(generators) != count:
        raise InputError(
            f"{len(generators)} seeds for {count} images.", hint="Give one seed for each image."
        )
    return generators
