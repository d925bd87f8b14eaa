"""Open a run or an exported pipeline, and draw pictures from prompts and seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from sfumato import __version__
from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import read_json, whole_folder, write_text
from sfumato.base.images import TEXT_PREFIX, png_bytes, to_pil, to_uint8
from sfumato.base.section import Section, validate
from sfumato.config.sections import (
    DataConfig,
    SamplingConfig,
    TextConfig,
    TrainingConfig,
    UNetConfig,
)
from sfumato.diffusion.guidance import CONVENTION, GuidanceConfig
from sfumato.diffusion.schedule import DiffusionConfig
from sfumato.diffusion.solvers.schedulers import build_scheduler, diffusion_of, sampler_of
from sfumato.diffusion.spacing import TimestepSpacing
from sfumato.generation.bundle_names import is_bundle, model_folder
from sfumato.generation.export import FILE_NAME, standalone_source
from sfumato.generation.pipeline import (
    TextToImagePipeline,
    check_sampling_arguments,
    generators_from_seeds,
)
from sfumato.models.unet import build_unet
from sfumato.text.encoder import ClipTextEncoder, load_text_encoder
from sfumato.text.prompts import NULL
from sfumato.training.checkpoint import Checkpoint, Checkpoints, load_part
from sfumato.training.state import load_state

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

TUNED = "tuned.json"
"""In a run folder: what `sfumato tune` chose to draw with."""
AVERAGE = "average"
"""The part of a checkpoint that is drawn with unless another is chosen."""


class RunSections(Section):
    """The sections of a run's experiment.yaml that drawing needs."""

    name: str
    seed: int
    data: DataConfig
    text: TextConfig
    model: UNetConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    sampling: SamplingConfig


class Tuned(Section):
    """The choice of `sfumato tune`: sampling, and which of the averages."""

    sampling: SamplingConfig
    average: str = AVERAGE


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image, uint8 (C, H, W), and everything needed to draw it again."""

    image: Tensor
    settings: dict[str, Any]

    def png(self) -> bytes:
        """The image as PNG; its settings are in the text chunks."""
        text = {TEXT_PREFIX + key: str(value) for key, value in self.settings.items()}
        return png_bytes(to_pil(self.image), text)


def settings_in_png(path: Path) -> dict[str, str]:
    """What `Picture.png` wrote into a file; empty for other PNGs, `InputError` for non-images."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise InputError(f"{path} is not a file.", hint="Give a PNG that sfumato drew.")
    try:
        with Image.open(path) as image:
            image.load()
            texts = dict(getattr(image, "text", {}))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} is not an image: {error}.") from error
    return {k.removeprefix(TEXT_PREFIX): v for k, v in texts.items() if k.startswith(TEXT_PREFIX)}


def build_pipeline(
    unet: "UNet2DConditionModel",
    encoder: ClipTextEncoder,
    *,
    data: DataConfig,
    diffusion: DiffusionConfig,
    sampling: SamplingConfig,
    provenance: dict[str, Any] | None = None,
) -> TextToImagePipeline:
    """A pipeline around a network that is already in memory."""
    return TextToImagePipeline(
        unet=unet,
        scheduler=build_scheduler(
            sampling.scheduler, diffusion, timestep_spacing=sampling.timestep_spacing
        ),
        text_encoder=encoder.model,
        tokenizer=encoder.tokenizer,
        value_range=data.value_range,
        max_tokens=encoder.max_tokens,
        guidance_scale=sampling.guidance_scale,
        num_inference_steps=sampling.steps,
        guidance=str(sampling.guidance),
        provenance=provenance,
    )


class ImageGenerator:
    """Draws pictures with a trained model; one seed a picture, the same alone or among others."""

    def __init__(
        self,
        pipeline: TextToImagePipeline,
        *,
        data: DataConfig | None = None,
        run_folder: Path | None = None,
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.data = data
        self.run_folder = run_folder

    @classmethod
    def open(
        cls, path: str | Path, *, device: str = "auto", checkpoint: int | None = None
    ) -> "ImageGenerator":
        """Open a run folder (averaged weights), a pipeline folder, a bundle, or a model that comes
        with sfumato (`bundled:NAME`).

        `checkpoint`: that of a run after so many images, instead of its newest one. `InputError`
        where the run has none there, or `path` is no run.
        """
        where = resolve_device(device)
        path = model_folder(path)
        if (path / "experiment.yaml").is_file():
            return cls._from_run(path, where, checkpoint)
        if checkpoint is not None and path.exists():
            raise InputError(
                f"{path} is no run, so that it has no checkpoint at {checkpoint:,} images.",
                hint="Give the folder of the run that it came from.",
            )
        if (path / "model_index.json").is_file() or is_bundle(path):
            try:
                pipeline = TextToImagePipeline.from_pretrained(path, low_cpu_mem_usage=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} is not a complete pipeline: {error}") from error
            recorded = pipeline.config["provenance"].get("data")
            data = DataConfig.model_validate(recorded) if recorded else None
            return cls(pipeline.to(where), data=data)
        raise InputError(
            f"{path} is neither a run nor a pipeline."
            if path.exists()
            else (f"{path} does not exist."),
            hint="Give a folder made by `sfumato train` or `sfumato demo`, or bundled:mnist.",
        )

    @classmethod
    def _from_run(cls, folder: Path, device: torch.device, images: int | None) -> "ImageGenerator":
        sections = run_sections(folder)
        checkpoint = _chosen_checkpoint(folder, images)
        tuned = tuned_settings(folder)
        average = AVERAGE if tuned is None else tuned.average
        unet = averaged_unet(checkpoint, sections, part=average)
        encoder = load_text_encoder(sections.text)
        recorded = checkpoint.state.get("text_encoder")
        if recorded is not None and recorded != encoder.identity:
            raise ConfigError(
                f"The model was trained with the text encoder '{recorded}', but "
                f"'{encoder.identity}' was loaded.",
                hint="Give the encoder it was trained with (text.encoder in experiment.yaml).",
            )
        pipeline = build_pipeline(
            unet,
            encoder,
            data=sections.data,
            diffusion=sections.diffusion,
            sampling=sections.sampling if tuned is None else tuned.sampling,
            provenance={
                "experiment": sections.name,
                "seed": sections.seed,
                "images_seen": checkpoint.images_seen,
                "average": average,
                "weights_sha256": checkpoint.sha256(average),
                "text_encoder": encoder.identity,
                "caption_dropout": sections.training.caption_dropout,
                "data": sections.data.model_dump(mode="json"),
                "sfumato": __version__,
            },
        )
        return cls(pipeline.to(device), data=sections.data, run_folder=folder)

    @property
    def provenance(self) -> dict[str, Any]:
        return self.pipeline.config["provenance"]

    def examples(self) -> tuple[list[str], list[str]]:
        """Captions to draw for a look at the model, and a short label of each.

        From the provenance where it names them, so that no data set is needed; else from the data
        set. `InputError` for a model that says neither.
        """
        if (known := self.provenance.get("examples")) is not None:
            return list(known), list(known.values())
        if self.data is None:
            raise InputError(
                "This model does not say which captions it was trained on.",
                hint="Give prompts after the model's folder.",
            )
        from sfumato.data.records import load_records

        return load_records(self.data, "test").examples()

    def use(
        self,
        *,
        scheduler: str | None = None,
        timestep_spacing: TimestepSpacing | None = None,
        guidance_scale: float | None = None,
        guidance: GuidanceConfig | None = None,
        steps: int | None = None,
    ) -> None:
        """Change the sampler, guidance or steps that later draws use."""
        if scheduler is not None or timestep_spacing is not None:
            there = self.pipeline.scheduler
            self.pipeline.scheduler = build_scheduler(
                scheduler or sampler_of(there)[0],
                diffusion_of(there),
                timestep_spacing=timestep_spacing or there.config["timestep_spacing"],
            )
        changes = {"guidance_scale": guidance_scale, "num_inference_steps": steps}
        self.pipeline.register_to_config(
            **{name: value for name, value in changes.items() if value is not None}
        )
        if guidance is not None:
            self.pipeline.register_to_config(guidance=str(guidance))

    def use_average(self, part: str) -> None:
        """Draw with another average of the run's checkpoint (`averages_of`); `InputError` where
        there is none of that name, or this is no run."""
        if self.provenance.get("average", AVERAGE) == part:
            return
        self._use_weights(self.provenance["images_seen"], part)

    def use_checkpoint(self, images: int) -> None:
        """Draw with the run's checkpoint after so many images, its average of the same name;
        `InputError` where there is none, or this is no run."""
        if self.run_folder is None or self.provenance["images_seen"] != images:
            self._use_weights(images, self.provenance.get("average", AVERAGE))

    def _use_weights(self, images: int, part: str) -> None:
        if self.run_folder is None:
            raise InputError(
                "A pipeline has one set of weights.", hint="Give the run that it came from."
            )
        checkpoint = _chosen_checkpoint(self.run_folder, images)
        unet = averaged_unet(checkpoint, run_sections(self.run_folder), part=part)
        like = self.pipeline.unet
        self.pipeline.register_modules(unet=unet.to(like.device, like.dtype))
        self.pipeline.register_to_config(
            provenance={
                **self.provenance,
                "images_seen": images,
                "average": part,
                "weights_sha256": checkpoint.sha256(part),
            }
        )

    @property
    def guidance(self) -> GuidanceConfig:
        """The form of guidance of draws that do not name one."""
        return GuidanceConfig.parse(self.pipeline.config["guidance"])

    def with_weak_network(self, guidance: GuidanceConfig) -> GuidanceConfig:
        """Load the weaker network of autoguidance, and name its checkpoint; others as they are."""
        if not guidance.needs_weak_network:
            return guidance
        images = int(guidance.parameters["images"])
        loaded = self.provenance.get("weak")
        if self.run_folder is not None:
            loaded = self._load_weak_network(self.run_folder, images)
        elif loaded is None or images not in (0, loaded["images_seen"]):
            raise InputError(
                f"This pipeline has no weaker network for {guidance.label}.",
                hint="Draw from the folder of the run that it came from.",
            )
        return GuidanceConfig(form=guidance.form, parameters={"images": loaded["images_seen"]})

    def _load_weak_network(self, run_folder: Path, images: int) -> dict[str, Any]:
        """The averaged network of the checkpoint after `images` (0: the oldest) as `weak_unet`."""
        own = self.provenance["images_seen"]
        earlier = {
            checkpoint.images_seen: checkpoint
            for checkpoint in Checkpoints(run_folder / "checkpoints").all()
            if checkpoint.images_seen < own
        }
        if not earlier or (images and images not in earlier):
            there = ", ".join(str(count) for count in earlier) or "none"
            raise InputError(
                f"Autoguidance needs an earlier checkpoint than the one at {own:,} images; "
                f"{run_folder} holds {there}" + (f", not {images}." if images else "."),
                hint=(
                    "Name one of them with autoguidance:images=N, or train" if earlier else "Train"
                )
                + " with a larger training.keep_checkpoints.",
            )
        checkpoint = earlier[images or min(earlier)]
        weak = {
            "images_seen": checkpoint.images_seen,
            "weights_sha256": checkpoint.sha256("average"),
        }
        if self.provenance.get("weak") != weak:
            unet = averaged_unet(checkpoint, run_sections(run_folder))
            like = self.pipeline.unet
            self.pipeline.register_modules(weak_unet=unet.to(like.device, like.dtype))
            self.pipeline.register_to_config(provenance={**self.provenance, "weak": weak})
        return weak

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float | None = None,
        guidance: GuidanceConfig | None = None,
        steps: int | None = None,
        batch_size: int = 64,
        on_batch: Callable[[int], None] | None = None,
    ) -> Iterator[Picture]:
        """One picture for each (prompt, seed), in order, a batch in memory at a time."""
        if len(prompts) != len(seeds):
            raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts.")
        config = self.pipeline.config
        scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
        count = config["num_inference_steps"] if steps is None else steps
        check_sampling_arguments(prompts, guidance_scale=scale, steps=count)
        form = self.with_weak_network(guidance or self.guidance)
        weak = self.provenance["weak"] if form.needs_weak_network else {}
        name, _ = sampler_of(self.pipeline.scheduler)
        value_range = config["value_range"]
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            part_seeds = seeds[start : start + batch_size]
            sampled = self.pipeline.sample(
                part,
                generators=generators_from_seeds(part_seeds),
                guidance_scale=scale,
                guidance=str(form),
                num_inference_steps=count,
            )
            images = to_uint8(sampled.x0, (value_range[0], value_range[1])).cpu()
            for image, prompt, seed in zip(images, part, part_seeds, strict=True):
                settings = {
                    "prompt": prompt,
                    "seed": seed,
                    "guidance_scale": float(scale),
                    "guidance": str(form),
                    "guidance_convention": CONVENTION,
                    "scheduler": name,
                    "timestep_spacing": self.pipeline.scheduler.config["timestep_spacing"],
                    "first_timestep": sampled.first_timestep,
                    "steps": count,
                    "calls": sampled.calls,
                    "experiment": self.provenance.get("experiment", ""),
                    "images_seen": self.provenance.get("images_seen", ""),
                    "weights_sha256": self.provenance.get("weights_sha256", ""),
                    "weak_weights_sha256": weak.get("weights_sha256", ""),
                    "text_encoder": self.provenance.get("text_encoder", ""),
                    "sfumato": __version__,
                }
                yield Picture(image=image, settings=settings)
            if on_batch is not None:
                on_batch(len(part))

    def export(self, folder: Path) -> None:
        """Write a diffusers folder (`model_index.json`, safetensors), whole or not at all.

        It carries our pipeline's code as one file, with which diffusers draws without sfumato. A
        folder already there is replaced. `InputError` for a guidance scale or steps out of range.
        """
        config = self.pipeline.config
        check_sampling_arguments(
            [NULL], guidance_scale=config["guidance_scale"], steps=config["num_inference_steps"]
        )
        self.use(guidance=self.with_weak_network(self.guidance))
        with whole_folder(folder) as temporary:
            self.pipeline.save_pretrained(temporary, safe_serialization=True)
            write_text(temporary / FILE_NAME, standalone_source())


def _chosen_checkpoint(folder: Path, images: int | None) -> Checkpoint:
    """A run's checkpoint after `images`, its newest whole one without it."""
    checkpoints = Checkpoints(folder / "checkpoints")
    if images is None:
        checkpoint = checkpoints.latest()
        if checkpoint is None:
            raise InputError(
                f"{folder} has no checkpoint yet.",
                hint="Let it train up to its first checkpoint, then try again.",
            )
        return checkpoint
    if not checkpoints.path(images).is_dir():
        there = ", ".join(str(checkpoint.images_seen) for checkpoint in checkpoints.all())
        raise InputError(
            f"{folder} has no checkpoint at {images:,} images.", hint=f"It has: {there or 'none'}."
        )
    return Checkpoint(checkpoints.path(images))


def run_sections(folder: Path) -> RunSections:
    """The sections of a run's experiment.yaml that drawing needs."""
    file = folder / "experiment.yaml"
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} is not an experiment.")
    known = {name: values[name] for name in RunSections.model_fields if name in values}
    return validate(RunSections, known, source=str(file))


def tuned_settings(folder: Path) -> Tuned | None:
    """What `sfumato tune` chose for a run; None where it was not tuned."""
    file = folder / TUNED
    return validate(Tuned, read_json(file), source=str(file)) if file.exists() else None


def averages_in(checkpoint: Checkpoint) -> list[str]:
    """The parts of a checkpoint that can be drawn with."""
    return [part for part in checkpoint.state["files"] if part.startswith(AVERAGE)]


def averaged_unet(
    checkpoint: Checkpoint, sections: RunSections, *, part: str = AVERAGE
) -> "UNet2DConditionModel":
    """An averaged network of a checkpoint; only that part of it is read. `InputError` with those
    that there are."""
    if part not in averages_in(checkpoint):
        raise InputError(
            f"{checkpoint.path} has no '{part}'.",
            hint=f"It holds {', '.join(averages_in(checkpoint))}; "
            "training.averaging.also_halflives_images keeps more.",
        )
    unet = build_unet(
        sections.model,
        resolution=sections.data.resolution,
        channels=sections.data.channels,
        seed=sections.seed,
    )
    file = checkpoint.verify(part)
    load_part(unet, load_state(file), file=file)
    return unet.eval().requires_grad_(False)


def resolve_device(name: str) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"No device named '{name}'.", hint="Use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("No CUDA device is available here.", hint="Use --device cpu.")
    return device


# The model API ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Samples:
    """`tensor` uint8 (N, C, H, W), `x0` float, `settings` of each image, `nfe` an image."""

    tensor: Tensor
    x0: Tensor
    settings: list[dict[str, Any]]
    nfe: int


@dataclass(frozen=True, kw_only=True)
class ModelSampling:
    sampler: str
    steps: int
    guidance_scale: float
    guidance: str
    timestep_spacing: TimestepSpacing

    @property
    def form(self) -> GuidanceConfig:
        return GuidanceConfig.parse(self.guidance)


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """Stand-in for the immutable model over `ImageGenerator`."""

    generator: ImageGenerator
    sampling: ModelSampling
    provenance: dict[str, Any]
    data: DataConfig | None
    folder: Path | None

    @classmethod
    def of(cls, generator: ImageGenerator) -> "Model":
        pipeline = generator.pipeline
        form = generator.with_weak_network(generator.guidance)
        return cls(
            generator=generator,
            sampling=ModelSampling(
                sampler=sampler_of(pipeline.scheduler)[0],
                steps=pipeline.config["num_inference_steps"],
                guidance_scale=pipeline.config["guidance_scale"],
                guidance=str(form),
                timestep_spacing=pipeline.scheduler.config["timestep_spacing"],
            ),
            provenance={
                name: value
                for name, value in generator.provenance.items()
                if name != "weak" or form.needs_weak_network
            },
            data=generator.data,
            folder=generator.run_folder,
        )

    @property
    def device(self) -> torch.device:
        return self.generator.pipeline.device

    @property
    def codec(self) -> Any:
        from types import SimpleNamespace

        low, high = self.generator.pipeline.config["value_range"]
        return SimpleNamespace(x0_range=(low, high))

    def with_(self, **changes: Any) -> "Model":
        from dataclasses import replace

        names = {"guidance": "guidance_scale", "form": "guidance"}
        given = {names.get(k, k): v for k, v in changes.items() if v is not None}
        provenance = self.provenance
        if "guidance" in given:
            form = self.generator.with_weak_network(GuidanceConfig.parse(str(given["guidance"])))
            given["guidance"] = str(form)
            if form.needs_weak_network:
                provenance = {**provenance, "weak": self.generator.provenance["weak"]}
        if "sampler" in given:
            from sfumato.diffusion.solvers.schedulers import sampler_name

            given["sampler"] = sampler_name(given["sampler"])
        check_sampling_arguments(
            [NULL],
            guidance_scale=given.get("guidance_scale", self.sampling.guidance_scale),
            steps=given.get("steps", self.sampling.steps),
        )
        return replace(self, sampling=replace(self.sampling, **given), provenance=provenance)

    def _ready(self) -> "TextToImagePipeline":
        self.generator.use(
            scheduler=self.sampling.sampler, timestep_spacing=self.sampling.timestep_spacing
        )
        return self.generator.pipeline

    def nfe(self) -> int:
        from sfumato.diffusion.sampling import network_calls
        from sfumato.diffusion.schedule import NoiseSchedule
        from sfumato.diffusion.solvers.schedulers import build_solver

        scheduler = self._ready().scheduler
        solver = build_solver(scheduler, steps=self.sampling.steps, generators=[])
        return network_calls(
            solver.timesteps,
            NoiseSchedule.from_config(diffusion_of(scheduler)),
            self.sampling.form.build(scale=self.sampling.guidance_scale),
        )

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        x0_range: Any = None,
        **changes: Any,
    ) -> Samples:
        if changes:
            return self.with_(**changes).sample(prompts, seeds, x0_range=x0_range)
        pipeline = self._ready()
        x0, calls, first = [], 0, 0
        for start in range(0, len(prompts), 64):
            sampled = pipeline.sample(
                prompts[start : start + 64],
                generators=generators_from_seeds(seeds[start : start + 64]),
                guidance_scale=self.sampling.guidance_scale,
                guidance=self.sampling.guidance,
                num_inference_steps=self.sampling.steps,
                x0_range=x0_range,
            )
            x0.append(sampled.x0)
            calls, first = sampled.calls, sampled.first_timestep
        joined = torch.cat(x0)
        common = {**self.settings(), "first_t": first, "nfe": calls}
        return Samples(
            tensor=to_uint8(joined, self.codec.x0_range).cpu(),
            x0=joined,
            settings=[
                {"prompt": p, "seed": s, **common} for p, s in zip(prompts, seeds, strict=True)
            ],
            nfe=calls,
        )

    def settings(self, **more: Any) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "guidance_scale": float(sampling.guidance_scale),
            "guidance": sampling.guidance,
            "guidance_convention": CONVENTION,
            "sampler": sampling.sampler,
            "timestep_spacing": sampling.timestep_spacing,
            "steps": sampling.steps,
            **more,
            "weights_sha256": self.provenance.get("weights_sha256", ""),
            "sfumato": __version__,
        }
