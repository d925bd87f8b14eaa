"""`TextToImagePipeline`: the diffusers face of a `Model`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sfumato.base.errors import InputError, PickleWarning
from sfumato.base.weights import compute_dtype
from sfumato.diffusion.guidance import Branch
from sfumato.diffusion.process import process_from_dict
from sfumato.diffusion.sampling import Change, OnStep, Step
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.diffusion.solvers.schedulers import check_belongs, scheduler_name
from sfumato.generation.asked import check_negative, negative_prompts
from sfumato.generation.call import (
    OUTPUT_TYPES,
    Keep,
    check_names,
    generators_of,
    noise_of,
    start_in_call,
)
from sfumato.generation.model import Model
from sfumato.models.codec import codec_from_dict
from sfumato.text.encoder import TextEncoder


class TextToImagePipeline(DiffusionPipeline):
    """A text-to-image model: U-Net, scheduler, frozen text encoder, tokenizer.

    Args:
        process: forward process and prediction type, as `Process.to_dict` gives them.
        codec: how pixels become what the network sees, as `Codec.to_dict` gives it.
        sampling: the fields of `Sampling`, used where a call does not give them.
        scheduler: the diffusers scheduler of the sampler; None for a rectified flow.
        max_tokens: prompts are padded or cut to this many tokens; None for what the tokenizer says.
        weak_unet: the weaker network of autoguidance, an earlier checkpoint of the same run.
        vae: of a model of latents whose codec is one.
        provenance: which run, checkpoint and data the weights come from.

    A pipeline that only encodes prompts needs text encoder and tokenizer, one that gets embeddings
    needs neither.
    """

    # Names and types of diffusers.
    _optional_components = ["scheduler", "weak_unet", "vae"]  # noqa: RUF012
    _callback_tensor_inputs = [  # noqa: RUF012
        "latents",
        "x0",
        "prompt_embeds",
        "negative_prompt_embeds",
    ]
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _exclude_from_cpu_offload = ["weak_unet"]  # noqa: RUF012, used at every step beside the U-Net

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: Any,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        # diffusers takes parameters without a default for components.
        process: dict[str, Any] | None = None,
        codec: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        weak_unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weak_unet=weak_unet,
            vae=vae,
        )
        self.register_to_config(
            process=process,
            codec=codec,
            sampling=sampling,
            max_tokens=max_tokens,
            provenance=provenance or {},
        )
        self._encoder: TextEncoder | None = None
        self._guidance_scale = 0.0
        self._interrupt = False
        self._num_timesteps = 0

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "TextToImagePipeline":
        """As in diffusers; also `bundled:NAME`, a model that comes with sfumato, and a run folder.

        Of a bundle or a run only `dtype` (or `torch_dtype`) is taken from `kwargs`, and what says
        how files are read is passed over. Raises `InputError` for an unknown NAME or other
        arguments, `DamagedDataError` for a file that was altered.
        """
        path = Path(pretrained_model_name_or_path)
        files = ("bundle.json", "sha256.json", "experiment.yaml")
        found = [file for file in files if (path / file).is_file()]
        if not str(path).startswith("bundled:") and not found:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        kind = "run" if found == ["experiment.yaml"] else "bundle"
        opening = import_module("sfumato.generation.export").open_pipeline
        return opening(pretrained_model_name_or_path, kind, kwargs)

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """As in diffusers, with `pipeline.py`, so that the folder opens without sfumato.

        Always safetensors: `safe_serialization=False`, pickles, is a `PickleWarning`.
        """
        if not safe_serialization:
            warnings.warn(
                "safe_serialization=False asks for pickles, which can run code when they are "
                "opened. Safetensors are written; diffusers opens them as well.",
                PickleWarning,
                stacklevel=2,
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if __name__.startswith("sfumato."):
            source = import_module("sfumato.generation.export").standalone_source()
        else:  # this module is that file
            source = Path(__file__).read_text("utf-8")
        (folder / "pipeline.py").write_text(source, "utf-8")
        super().save_pretrained(folder, **kwargs)

    @property
    def guidance_scale(self) -> float:
        """Of the last or running call; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale not in (0, 1)

    @property
    def num_timesteps(self) -> int:
        """Network evaluations of the last or running call, without guidance."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback set `_interrupt`, which ends the call after that step."""
        return self._interrupt

    @property
    def model(self) -> Model:
        """The model that this pipeline is the face of.

        A scheduler that was set on the pipeline decides sampler and timestep spacing. `InputError`
        where it belongs to another process than the one that the network was trained on.
        """
        if self.unet is None or None in (self.config["process"], self.config["codec"]):
            raise InputError("This pipeline has no network: it only encodes prompts.")
        process = process_from_dict(self.config["process"])
        sampling = Sampling(**self.config["sampling"])
        if self.scheduler is not None:
            name = scheduler_name(self.scheduler)
            check_belongs(self.scheduler, process)
            spacing = self.scheduler.config.get("timestep_spacing", sampling.timestep_spacing)
            try:
                sampling = replace(sampling, sampler=name, timestep_spacing=spacing)
            except ValueError as error:  # the sampler of a distilled student is its own
                raise InputError(
                    f"{error}.", hint="Leave the pipeline's scheduler as it was."
                ) from error
        return Model(
            network=self.unet,
            process=process,
            codec=codec_from_dict(self.config["codec"], self.vae),
            text_encoder=self._text_encoder(),
            sampling=sampling,
            provenance=self.config["provenance"],
            weak_network=self.weak_unet,
            scheduler=self.scheduler,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str | None] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        seeds: Any = None,
        guidance: str | None = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float | None = None,
    ) -> Any:
        """Sample `num_images_per_prompt` images for each of B prompts: N images.

        Args:
            prompt: one prompt or B of them, or None with `prompt_embeds`.
            height, width: of the images in pixels, those of training without them: multiples of
                what the network scales down by.
            num_inference_steps: denoising steps, 1 to T.
            guidance_scale: w of Eq. 1; 0 is unconditional, 1 conditional without guidance.
            negative_prompt: what guidance leads away from, one or B; the empty prompt of training
                where it is None.
            generator: N CPU generators, or one that draws for all of them: then an image depends
                on the others.
            latents: (N, C, H, W) standard normal noise to start from.
            prompt_embeds, negative_prompt_embeds: (B, L, D) instead of the prompts, as
                `encode_prompt` gives them.
            output_type: `pil`, `pt` (float (N, C, H, W) in [0, 1]), `np` (the same as an array,
                (N, H, W, C)), `uint8` (N, C, H, W) or `latent` (x0 as the network has it).
            callback_on_step_end: called with (pipeline, index, timestep, tensors) after every
                network evaluation; sampling goes on with the tensors that it returns and with
                `pipeline._guidance_scale`, and ends where it sets `pipeline._interrupt`.
            callback_on_step_end_tensor_inputs: which tensors: `latents`, the x_t after the step;
                `x0`, to look at; `prompt_embeds` and `negative_prompt_embeds` (N, L, D).
            seeds: N seeds; the same seed gives the same image, alone or among others.
            guidance: form of guidance: `cfg`, `interval:low=0.28,high=2.9`, `apg`, ...
            image: one picture to start from, or N: Pillow images, or uint8 pixels, (H, W, C) of
                numpy or (C, H, W) of torch; brought to the size of training.
            mask_image: the same; white is painted anew, black pixels keep their values exactly.
            strength: the share of the steps that are done from `image`, in (0, 1]; 0.8 unless
                given, 1 with a mask: then they start from noise alone.

        x0 is clamped to the codec's range at every step, whatever the scheduler says; latents have
        no range.

        Returns:
            `ImagePipelineOutput(images)`, or a tuple with the images.

        Raises:
            InputError: no prompt, a name that is not known, or numbers or shapes out of range.
        """
        check_names(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        model = self.model.with_(guidance=guidance_scale, form=guidance, steps=num_inference_steps)
        self._guidance_scale, self._interrupt = model.sampling.guidance_scale, False
        embeds = self._embeds(model, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        if num_images_per_prompt < 1:
            raise InputError(
                f"num_images_per_prompt is {num_images_per_prompt}.", hint="Give 1 or more."
            )
        cond, uncond = (part.repeat_interleave(num_images_per_prompt, 0) for part in embeds)
        count = len(cond)
        start = start_in_call(model, image, mask_image, strength, (height, width), count)
        generators = generators_of(count, seeds, generator)
        shared = isinstance(generator, torch.Generator)
        sampled = model.denoise(
            {"cond": cond, "uncond": uncond, "weak": cond},
            generators,
            noise=noise_of(model, (height, width), generators, shared, latents),
            start=start,
            on_step=self._on_step(
                model, callback_on_step_end, callback_on_step_end_tensor_inputs, (cond, uncond)
            ),
            alone=count == 1,
        )
        keep: Keep = start.keep if start is not None else lambda images: images
        images = OUTPUT_TYPES[output_type](sampled.x0, model.codec, keep)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        negative_prompt: str | Sequence[str | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(N, L, D) float32 of the prompts and of what guidance leads away from."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InputError("There is no prompt.", hint="Give at least one, in quotes.")
        encoder = self._text_encoder()
        if encoder is None:
            raise InputError(
                "This pipeline has no text encoder.",
                hint="Give prompt_embeds and negative_prompt_embeds.",
            )
        against = negative_prompts(negative_prompt, len(prompts))
        both = encoder.tokens([*prompts, *against]).repeat_interleave(num_images_per_prompt, 0)
        prompt_embeds, negative_prompt_embeds = both.chunk(2)
        return prompt_embeds, negative_prompt_embeds

    def _embeds(
        self,
        model: Model,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str | None] | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(B, L, D) each, on the model's device in its dtype."""
        if (prompt is None) == (prompt_embeds is None):
            raise InputError("Give prompt or prompt_embeds, one of them.")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise InputError("Give negative_prompt or negative_prompt_embeds, not both.")
        check_negative(model.sampling, negative_prompt)
        if negative_prompt_embeds is not None and model.sampling.form.folded:
            raise InputError(
                "A distilled model takes no negative_prompt_embeds.", hint="Leave them out."
            )
        if prompt is not None:
            cond, uncond = self.encode_prompt(prompt, 1, negative_prompt)
        else:
            assert prompt_embeds is not None
            cond, uncond = prompt_embeds, negative_prompt_embeds
            if uncond is None:
                against = negative_prompts(negative_prompt, len(cond))
                uncond = self.encode_prompt(against)[0]
        uncond = uncond if negative_prompt_embeds is None else negative_prompt_embeds
        if len(uncond) == 1:
            uncond = uncond.expand(len(cond), -1, -1)
        width = model.network.config["cross_attention_dim"]
        if cond.shape != uncond.shape or cond.ndim != 3 or cond.shape[2] != width:
            raise InputError(
                f"prompt_embeds {tuple(cond.shape)} and negative_prompt_embeds "
                f"{tuple(uncond.shape)} do not fit the network.",
                hint=f"Both are (prompts, tokens, {width}), as encode_prompt gives them.",
            )
        dtype = compute_dtype(model.network)
        return cond.to(model.device, dtype), uncond.to(model.device, dtype)

    def _on_step(
        self,
        model: Model,
        callback: Callable[[Any, int, int, dict[str, Tensor]], Any] | None,
        names: Sequence[str],
        embeds: tuple[Tensor, Tensor],
    ) -> OnStep:
        """`callback` as the sampling loop calls it."""
        shown: dict[str, Tensor] = {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}

        def on_step(step: Step) -> Change | None:
            self._num_timesteps = step.count
            if callback is None:
                return None
            tensors = {**shown, "latents": step.x_t, "x0": step.x0}
            scale, time = self._guidance_scale, model.process.network_time(torch.tensor(step.t))
            with torch.inference_mode(mode=False):  # the callback may keep and change its tensors
                given = {name: tensors[name].clone() for name in names}
                returned = callback(self, step.index, int(time), given) or {}
            tokens: dict[Branch, Tensor] | None = None
            if shown.keys() & returned.keys():
                shown.update({name: returned[name] for name in shown if name in returned})
                cond, uncond = shown.values()
                tokens = {"cond": cond, "uncond": uncond, "weak": cond}
            if scale != self._guidance_scale and model.sampling.form.folded:
                raise InputError(
                    "The guidance of a distilled model does not change on the way.",
                    hint="Give guidance_scale to the call and leave _guidance_scale alone.",
                )
            guided = model.with_(guidance=self._guidance_scale).sampling
            changed = guided.form.build(
                scale=guided.guidance_scale, value_range=model.codec.x0_range
            )
            return Change(
                x_t=returned.get("latents"),
                tokens=tokens,
                guidance=None if scale == self._guidance_scale else changed,
                stop=self._interrupt,
            )

        return on_step

    def _text_encoder(self) -> TextEncoder | None:
        """The text encoder, which remembers prompts between calls; None without one."""
        if self.text_encoder is None:
            return None
        found = self._encoder
        if found is None or (found.model, found.tokenizer) != (self.text_encoder, self.tokenizer):
            found = self._encoder = TextEncoder(
                self.text_encoder,
                self.tokenizer,
                name=self.text_encoder.name_or_path,
                max_tokens=self.config["max_tokens"] or self.tokenizer.model_max_length,
            )
        return found
