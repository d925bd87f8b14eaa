"""A creative adversarial network as a `Model`: one evaluation of a network, classes as prompts."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file, whole_folder, write_json
from sfumato.config.adversarial import CanNetworkConfig
from sfumato.config.schema import CanExperiment, load_experiment
from sfumato.config.sections import TextConfig
from sfumato.data.captions import in_words
from sfumato.diffusion.sampling import Sampled, initial_noise
from sfumato.generation.asked import seed_numbers
from sfumato.generation.bundle_names import CAN_FILE
from sfumato.generation.model import Model
from sfumato.generation.runs import AVERAGE, averages_in, chosen_checkpoint
from sfumato.generation.samples import Samples
from sfumato.models.can import Generator
from sfumato.models.codec import PixelCodec
from sfumato.text.encoder import NULL, TextEncoder, shortened
from sfumato.text.opening import load_text_encoder
from sfumato.training.checkpoint import load_part
from sfumato.training.state import load_state, save_state

TEXT = "text"
"""In the provenance: the text encoder of a CAN whose condition are captions."""
RESULT, WEIGHTS = "can", "generator.safetensors"
"""Folder inside a run that holds the exported generator, and its weights."""
CAN_TITLE = "CAN"
FORMAT = 2
_ROWS = 16
"""Images of a call of the network: on a CPU the last bits depend on their number."""
_CAPTIONS = 256
"""Captions that are encoded at once."""
_SHOWN = 10
_NAMES = {
    "guidance": "guidance scale",
    "form": "form of guidance",
    "sampler": "sampler",
    "steps": "number of steps",
    "timestep_spacing": "timestep spacing",
    "x0_range": "range of x0",
    "on_step": "steps to be told of",
    "negative_prompt": "negative prompt",
}
"""What a diffusion model is asked for and a CAN does not have."""


class ClassReader:
    """What a CAN has in the place of a text encoder: it finds the class that a prompt names.

    A prompt is the caption of a class, or has the name of one among its words, as the data set has
    it or in words ("7", "seven"; "Art_Nouveau", "art nouveau"). Without `names` it takes no prompt.
    """

    def __init__(self, names: Sequence[str], captions: Sequence[str]) -> None:
        """`captions`: one of each class, in the order of `names`; one that several share names none
        of them."""
        self.names = names
        of_one = [caption for caption, count in Counter(captions).items() if count == 1]
        self._captions = {caption: captions.index(caption) for caption in of_one}
        self._phrases = {
            phrase: label
            for label, name in enumerate(names)
            for phrase in (_words(in_words(name)), _words(name))
            if phrase
        }

    def check(self, prompts: Collection[str]) -> None:
        """`InputError` for one that is not understood; the empty one is left to `label`."""
        for prompt in prompts:
            if prompt != NULL:
                self.label(prompt)

    def label(self, prompt: str) -> int:
        """The class that a prompt names; `InputError` for none and for several."""
        if not self.names:
            raise InputError(
                f"This CAN takes no prompt, and {shortened(prompt)} was given: it was not trained "
                "with classes as a condition.",
                hint="Leave the prompt out, or train with network.conditional=true.",
            )
        if prompt in self._captions:
            return self._captions[prompt]
        found = sorted({label for _, label in _longest(_words(prompt), self._phrases)})
        if len(found) == 1:
            return found[0]
        named = ", ".join(self.names[label] for label in found)
        known = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self.names) > _SHOWN else "")
        raise InputError(
            f"{shortened(prompt)} names "
            f"{f'several classes: {named}' if found else 'no class'}; one is needed.",
            hint=f"Name one of {known}.",
        )


def prompts_of_classes(names: Sequence[str], captions: Sequence[str]) -> list[str]:
    """What asks a `ClassReader` for each class: its caption, or its name where others share it."""
    shared = Counter(captions)
    return [
        caption if shared[caption] == 1 else name
        for name, caption in zip(names, captions, strict=True)
    ]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", text.casefold()))


def _longest(
    words: tuple[str, ...], phrases: Mapping[tuple[str, ...], int]
) -> list[tuple[range, int]]:
    """Where phrases are among `words`, with the class of each, but those inside longer ones:
    "abstract expressionism" is not "expressionism"."""
    found = [
        (range(start, start + len(phrase)), label)
        for phrase, label in phrases.items()
        for start in range(len(words) - len(phrase) + 1)
        if words[start : start + len(phrase)] == phrase
    ]
    return [
        (place, label)
        for place, label in found
        if not any(len(other) > len(place) and set(place) <= set(other) for other, _ in found)
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class CanModel(Model):
    """A generator with the face of a `Model`: sampled, evaluated, compared, evolved, exported.

    It has no forward process, and nothing of `sampling` applies. The prompt of a conditional one
    names the class, or is a caption where captions are its condition; another takes none. `shape`
    is that of z.
    """

    network: Generator
    process: Any = None
    codec: PixelCodec = field(default_factory=PixelCodec)
    text_encoder: Any

    def __post_init__(self) -> None:
        if self.compiled:
            raise InputError(
                "A CAN is not compiled: its generator is evaluated once an image.",
                hint="Leave --compile out.",
            )

    @property
    def conditional(self) -> bool:
        """Whether it draws the class that it is asked for."""
        return self.network.config.conditional

    @property
    def draws_noise(self) -> bool:
        return False

    @property
    def title(self) -> str:
        return CAN_TITLE

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.network.config.latent, 1, 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        side = self.network.config.resolution
        return self.network.channels, side, side

    def nfe(self, strength: float = 1.0) -> int:
        return 1

    def with_(self, **changes: Any) -> "CanModel":
        """The same model; `InputError` for any setting of a diffusion model that is given."""
        _refuse(changes)
        return self

    def sample(
        self, prompts: str | Sequence[str] | None = None, seeds: Any = 0, **how: Any
    ) -> Samples:
        """As `Model.sample`: one image for each (prompt, seed), the same alone and among others.

        Without prompts a conditional model draws its classes in turn, by seed. `how`: `on_batch`
        and `batch_size`; `InputError` for what a CAN does not have, such as a guidance scale.
        """
        own = {name: how.pop(name) for name in ("on_batch", "batch_size", "alone") if name in how}
        places = {name: how.pop(name, None) for name in ("init_image", "mask", "strength")}
        _refuse(how)
        if prompts is None:
            captions = self.examples()[0]
            prompts = [captions[seed % len(captions)] for seed in seed_numbers(seeds)] or NULL
        return super().sample(prompts, seeds, **places, **own)

    def interpolate(self, *args: Any, **how: Any) -> Samples:
        """`InputError`: noise is combined by `sfumato evolve`."""
        raise InputError(
            "A CAN is not interpolated.", hint="Its noise is combined by `sfumato evolve`."
        )

    def start(
        self, init_image: Any, mask: Any = None, strength: float | None = None, *, count: int = 1
    ) -> None:
        """None; `InputError` for an image to start from."""
        if any(one is not None for one in (init_image, mask, strength)):
            raise InputError(
                "A CAN starts from noise alone, not from an image.", hint="Leave the image out."
            )

    @torch.no_grad()
    def denoise(
        self,
        tokens: Mapping[Any, Tensor],
        generators: Sequence[torch.Generator],
        *,
        noise: Tensor | None = None,
        **how: Any,
    ) -> Sampled:
        """One batch, by calls of equal size. `noise`: z (B, latent, 1, 1), else drawn; `tokens`:
        of the branch `cond`, as `tokens` gives them."""
        z = (initial_noise(self.shape, generators) if noise is None else noise).flatten(1)
        weights = next(self.network.parameters())
        z, classes = (one.to(weights) for one in (z, tokens["cond"].flatten(1)))
        made = []
        for first in range(0, len(z), _ROWS):
            rows = torch.arange(first, first + _ROWS).clamp_max(len(z) - 1)
            made.append(self.network.drawn(z[rows], classes[rows])[: len(z) - first].float())
        return Sampled(x0=torch.cat(made), nfe=1, first_t=0.0)

    def tokens(
        self, prompts: Sequence[str], negative: Sequence[str] | None = None
    ) -> dict[Any, Tensor]:
        """(B, 1, D): the embedding of each prompt or of the class that it names; D is 0 without a
        condition."""
        embed = self.network.embed
        if embed is None:
            self.text_encoder.check(prompts)
            found = torch.zeros(len(prompts), 1, 0)
        elif self.network.config.reads_captions:
            found = embed(caption_means(self.text_encoder, prompts).to(self.device))[:, None]
        else:
            labels = torch.tensor([self.text_encoder.label(prompt) for prompt in prompts])
            found = embed(labels.to(self.device))[:, None]
        return dict.fromkeys(("cond", "uncond", "weak"), found)

    def settings(self, **more: Any) -> dict[str, Any]:
        known = self.provenance
        more.pop("first_t", None)
        if (dtype := next(self.network.parameters()).dtype) != torch.float32:
            more["dtype"] = str(dtype).removeprefix("torch.")
        return {
            **more,
            **{name: known[name] for name in ("experiment", "images_seen", "weights_sha256")},
            "sfumato": __version__,
        }

    def examples(self) -> tuple[list[str], list[str]]:
        """A caption and the name of each class; without classes the empty prompt."""
        if not self.conditional:
            return [NULL], [""]
        return list(self.provenance["captions"]), list(self.provenance["classes"])

    def export(self, folder: str | Path, *, space: bool = False) -> None:
        """Write a folder for `sfumato.load`: the weights (safetensors), and can.json. `InputError`
        for a `space`, whose page runs without sfumato."""
        if space:
            raise InputError(
                "A CAN has no page of Gradio: the page runs without sfumato, which a CAN needs.",
                hint="Export it without --space, or open it on a page with `sfumato studio`.",
            )
        with whole_folder(Path(folder)) as temporary:
            save_state(self.network.state_dict(), temporary / WEIGHTS)
            about = {
                "format": FORMAT,
                "network": self.network.config.model_dump(mode="json"),
                "channels": self.network.channels,
                "provenance": dict(self.provenance),
                "sha256": sha256_of_file(temporary / WEIGHTS),
            }
            write_json(temporary / CAN_FILE, about)


def _refuse(given: Mapping[str, Any]) -> None:
    asked = [name for name, value in given.items() if value is not None and value != NULL]
    if asked:
        raise InputError(
            f"A CAN has no {_NAMES.get(asked[0], asked[0])}: its generator is evaluated once.",
            hint="Leave that out.",
        )


# Opening ------------------------------------------------------------------------------------------


def can_of_run(
    folder: Path, device: torch.device, images: int | None, average: str | None
) -> CanModel:
    """The averaged generator of a run's newest checkpoint, or of the one after so many `images`.

    `InputError` where there is no such checkpoint or average.
    """
    experiment = load_experiment(folder / "experiment.yaml", schema=CanExperiment)
    checkpoint, part = chosen_checkpoint(folder, images), average or AVERAGE
    if part not in averages_in(checkpoint):
        raise InputError(f"{checkpoint.path} has no '{part}'.", hint=f"It holds {AVERAGE}.")
    state = checkpoint.state
    assert experiment.data.channels != "auto"  # that of a run is resolved
    provenance = {
        "experiment": experiment.name,
        "seed": experiment.seed,
        "images_seen": checkpoint.images_seen,
        "average": part,
        "weights_sha256": checkpoint.sha256(part),
        "ambiguity": experiment.training.ambiguity,
        "ambiguity_weight": experiment.training.ambiguity_weight,
        "classes": list(state["classes"]),
        "captions": list(state["captions"]),
        "data": experiment.data.model_dump(mode="json"),
        **({TEXT: state[TEXT]} if TEXT in state else {}),
        "sfumato": __version__,
    }
    model = _model(experiment.network, experiment.data.channels, provenance, folder)
    file = checkpoint.verify(part)
    load_part(model.network, load_state(file), file=file)
    return _placed(model, device)


def can_of_export(folder: Path, device: torch.device) -> CanModel:
    """The generator of an exported folder; `DamagedDataError` for weights that were altered."""
    about = read_json(folder / CAN_FILE)
    if about.get("format") != FORMAT:
        raise DamagedDataError(
            f"{folder / CAN_FILE} is of another version of sfumato.", hint="Export the run again."
        )
    if sha256_of_file(folder / WEIGHTS) != about["sha256"]:
        raise DamagedDataError(
            f"{folder / WEIGHTS} is not the file that was exported.", hint="Export the run again."
        )
    config = CanNetworkConfig.model_validate(about["network"])
    model = _model(config, about["channels"], about["provenance"], None)
    model.network.load_state_dict(load_state(folder / WEIGHTS))
    return _placed(model, device)


def _model(
    config: CanNetworkConfig, channels: int, provenance: Mapping[str, Any], folder: Path | None
) -> CanModel:
    """The model, with weights still to be loaded."""
    names, captions = provenance["classes"], provenance["captions"]
    reader: Any = ClassReader(names, captions) if config.conditional else ClassReader((), ())
    width = 0
    if config.reads_captions:
        reader = _encoder(provenance[TEXT])
        width = reader.dim
    return CanModel(
        network=Generator(config, channels=channels, classes=len(names), text_width=width),
        text_encoder=reader,
        provenance=provenance,
        folder=folder,
    )


def _encoder(about: Mapping[str, Any]) -> TextEncoder:
    """The text encoder of training; `DamagedDataError` where it has other weights by now."""
    settings = {name: about[name] for name in TextConfig.model_fields}
    encoder = load_text_encoder(TextConfig.model_validate(settings))
    if encoder.identity != about["identity"]:
        raise DamagedDataError(
            f"The text encoder '{about['encoder']}' is {encoder.identity}; this CAN was trained "
            f"with {about['identity']}.",
            hint="Put the encoder of training in its place.",
        )
    return encoder


def _placed(model: CanModel, device: torch.device) -> CanModel:
    model.network.to(device).eval().requires_grad_(False)
    return model


def caption_means(encoder: TextEncoder, captions: Sequence[str]) -> Tensor:
    """(N, D) float32 on the CPU: the mean of the tokens of each caption."""
    parts = [
        encoder.tokens(captions[start : start + _CAPTIONS]).mean(1)
        for start in range(0, len(captions), _CAPTIONS)
    ]
    return torch.cat(parts)
