"""`TextToImagePipeline`: the diffusers face of a `Model`."""

import secrets
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sfumato.base.errors import InputError
from sfumato.base.images import to_pil
from sfumato.diffusion.process import process_from_dict
from sfumato.diffusion.sampling import Step
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.diffusion.solvers.schedulers import process_of_scheduler, scheduler_name
from sfumato.generation.model import Model, generators_from_seeds
from sfumato.models.codec import Codec, codec_from_dict
from sfumato.text.encoder import NULL, TextEncoder


def _unit(x0: Tensor, codec: Codec) -> Tensor:
    """x0 to [0, 1]."""
    low, high = codec.x0_range
    return (x0 - low) / (high - low)


OUTPUT_TYPES: dict[str, Callable[[Tensor, Codec], Any]] = {
    "pil": lambda x0, codec: [to_pil(image) for image in codec.decode(x0)],
    "pt": _unit,
    "np": lambda x0, codec: _unit(x0, codec).permute(0, 2, 3, 1).cpu().numpy(),
    "uint8": lambda x0, codec: codec.decode(x0),
}
"""(x0 (B, C, H, W), codec) to what a call returns."""


class TextToImagePipeline(DiffusionPipeline):
    """A text-to-image model: U-Net, scheduler, frozen text encoder, tokenizer.

    Args:
        process: forward process and prediction type, as `Process.to_dict` gives them.
        codec: how pixels become what the network sees, as `Codec.to_dict` gives it.
        sampling: the fields of `Sampling`, used where a call does not give them.
        scheduler: the diffusers scheduler of the sampler; None for a rectified flow.
        max_tokens: prompts are padded or cut to this many tokens.
        weak_unet: the weaker network of autoguidance, an earlier checkpoint of the same run.
        provenance: which run, checkpoint and data the weights come from.
    """

    _optional_components = ["scheduler", "weak_unet"]  # noqa: RUF012, the name and type of diffusers

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
        max_tokens: int = 77,
        weak_unet: UNet2DConditionModel | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        assert process is not None
        assert codec is not None
        assert sampling is not None
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            weak_unet=weak_unet,
        )
        self.register_to_config(
            process=process,
            codec=codec,
            sampling=sampling,
            max_tokens=max_tokens,
            provenance=provenance or {},
        )
        self._encoder: TextEncoder | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "TextToImagePipeline":
        """As in diffusers; `bundled:NAME` is a model that comes with sfumato.

        Of a bundle only `torch_dtype` is taken from `kwargs`, and what says how files are read is
        passed over. Raises `InputError` for an unknown NAME or other arguments,
        `DamagedDataError` for a bundle of which a file was altered.
        """
        path = Path(pretrained_model_name_or_path)
        of_bundle = [(path / file).is_file() for file in ("bundle.json", "sha256.json")]
        if not str(path).startswith("bundled:") and not any(of_bundle):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        dtype = kwargs.pop("torch_dtype", None)
        if unknown := kwargs.keys() - {"low_cpu_mem_usage", "use_safetensors", "local_files_only"}:
            raise InputError(
                f"{pretrained_model_name_or_path} is a bundle; from_pretrained takes no "
                f"{min(unknown)}= for it.",
                hint="Change the pipeline once it is open, or `sfumato export` the bundle and "
                "open that folder.",
            )
        model = import_module("sfumato.generation.bundles").open_bundle(path)
        pipeline = import_module("sfumato.generation.export").pipeline_of(model)
        return pipeline if dtype is None else pipeline.to(dtype)

    @property
    def model(self) -> Model:
        """The model that this pipeline is the face of.

        A scheduler that was set on the pipeline decides sampler and timestep spacing. `InputError`
        where it belongs to another process than the one that the network was trained on.
        """
        process = process_from_dict(self.config["process"])
        sampling = Sampling(**self.config["sampling"])
        if self.scheduler is not None:
            if process_of_scheduler(self.scheduler) != process:
                raise InputError(
                    f"The {type(self.scheduler).__name__} was configured for another noise "
                    "schedule or prediction type than the network was trained on.",
                    hint=f"Use {type(self.scheduler).__name__}.from_config(pipe.scheduler.config).",
                )
            sampling = Sampling(
                **self.config["sampling"]
                | {
                    "sampler": scheduler_name(self.scheduler),
                    "timestep_spacing": self.scheduler.config["timestep_spacing"],
                }
            )
        return Model(
            network=self.unet,
            process=process,
            codec=codec_from_dict(self.config["codec"]),
            text_encoder=self._text_encoder(),
            sampling=sampling,
            provenance=self.config["provenance"],
            weak_network=self.weak_unet,
            scheduler=self.scheduler,
        )

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
        """Sample one image for each prompt.

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
        if not prompts:
            raise InputError("There is no prompt.", hint="Give at least one, in quotes.")

        def on_step(step: Step) -> None:
            if callback_on_step_end is not None:
                state = {"latents": step.x_t, "x0": step.x0}
                callback_on_step_end(self, step.index, int(step.t), state)

        model = self.model.with_(guidance=guidance_scale, form=guidance, steps=num_inference_steps)
        sampled = model.denoise(
            prompts,
            _generators(len(prompts), seeds, generator),
            negative_prompt=negative_prompt,
            on_step=on_step,
        )
        images = OUTPUT_TYPES[output_type](sampled.x0, model.codec)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _text_encoder(self) -> TextEncoder:
        """The text encoder, which remembers prompts between calls."""
        found = self._encoder
        if found is None or (found.model, found.tokenizer) != (self.text_encoder, self.tokenizer):
            found = self._encoder = TextEncoder(
                self.text_encoder,
                self.tokenizer,
                name=self.text_encoder.name_or_path,
                max_tokens=self.config["max_tokens"],
            )
        return found


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
            "A generator of another device was given; noise is drawn on the CPU, so that it is "
            "the same for every device.",
            hint="Give seeds, or generators made with torch.Generator('cpu').",
        )
    if len(generators) != count:
        raise InputError(
            f"{len(generators)} seeds for {count} images.", hint="Give one seed for each image."
        )
    return generators
