"""The generator of a creative adversarial network: images from seeds."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file, whole_folder
from sfumato.base.images import to_uint8
from sfumato.config.adversarial import CanNetworkConfig
from sfumato.generation.asked import generators_from_seeds, seed_numbers
from sfumato.generation.loading import resolve_device
from sfumato.generation.samples import Samples
from sfumato.models.can import Generator
from sfumato.training.state import load_state

RESULT, FILE_NAME, WEIGHTS = "can", "can.json", "generator.safetensors"
"""Folder inside a run that holds the finished generator, and its files."""
_ROWS = 16
"""Images of a call of the network: on a CPU the last bits depend on their number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CanModel:
    """A finished generator; `about`: its can.json; `folder`: where it lies."""

    network: Generator
    about: Mapping[str, Any]
    folder: Path

    def sample(self, seeds: Any = 0, *, labels: Any = None) -> Samples:
        """One image a seed, the same alone and among others. `labels`: the class of each, of a
        conditional network; else the classes in turn, by seed.

        `InputError` for seeds or classes that are not there, and for classes that it cannot take.
        """
        numbers = seed_numbers(seeds)
        if not numbers:
            raise InputError("There is no seed.", hint="Give at least one.")
        classes = self._classes(numbers, labels)
        latent = self.network.config.latent
        draws = [torch.randn(latent, generator=one) for one in generators_from_seeds(numbers)]
        x0 = self._in_rows(torch.stack(draws), torch.tensor(classes))
        names, conditional = self.about["class_names"], self.network.config.conditional
        settings = [
            {
                "prompt": names[label] if conditional else "",
                "seed": seed,
                "experiment": self.about["experiment"],
                "images_seen": self.about["images_seen"],
                "weights_sha256": self.about["sha256"],
                "sfumato": __version__,
            }
            for seed, label in zip(numbers, classes, strict=True)
        ]
        return Samples(tensor=to_uint8(x0, (-1.0, 1.0)), x0=x0, settings=settings, nfe=1)

    def _classes(self, seeds: list[int], labels: Any) -> list[int]:
        count = self.network.classes
        if labels is None:
            return [seed % count for seed in seeds]
        if not self.network.config.conditional:
            raise InputError(
                "This generator does not know classes.",
                hint="Leave labels out, or train with network.conditional=true.",
            )
        classes = seed_numbers(labels)
        if len(classes) != len(seeds) or not all(0 <= label < count for label in classes):
            raise InputError(
                f"Labels {classes} for {len(seeds)} seeds are not possible.",
                hint=f"Give one for each, from 0 to {count - 1}.",
            )
        return classes

    @torch.no_grad()
    def _in_rows(self, z: Tensor, labels: Tensor) -> Tensor:
        """(B, C, H, W) on the CPU, by calls of equal size."""
        device, made = next(self.network.parameters()).device, []
        for start in range(0, len(z), _ROWS):
            rows = torch.arange(start, start + _ROWS).clamp_max(len(z) - 1)
            images = self.network(z[rows].to(device), labels[rows].to(device))
            made.append(images[: len(z) - start].cpu())
        return torch.cat(made)

    def export(self, folder: str | Path) -> None:
        """Write a folder with the weights (safetensors) and can.json, which `load_can` opens."""
        with whole_folder(Path(folder)) as temporary:
            for name in (FILE_NAME, WEIGHTS):
                shutil.copyfile(self.folder / name, temporary / name)


def load_can(path: str | Path, *, device: str = "auto") -> CanModel:
    """The generator of a finished run of `sfumato train can`, or of an exported folder.

    `InputError` where there is none, `DamagedDataError` for weights that were altered.
    """
    folder = Path(path)
    folder = folder / RESULT if (folder / RESULT / FILE_NAME).is_file() else folder
    if not (folder / FILE_NAME).is_file():
        raise InputError(
            f"{path} has no finished generator.",
            hint="Give the folder of a finished run of `sfumato train can`.",
        )
    about = read_json(folder / FILE_NAME)
    if sha256_of_file(folder / WEIGHTS) != about["sha256"]:
        raise DamagedDataError(
            f"{folder / WEIGHTS} is not the file that the training wrote.",
            hint="Copy the run folder again.",
        )
    network = Generator(
        CanNetworkConfig.model_validate(about["network"]),
        channels=about["channels"],
        classes=len(about["class_names"]),
    )
    network.load_state_dict(load_state(folder / WEIGHTS))
    network = network.eval().requires_grad_(False).to(resolve_device(device))
    return CanModel(network=network, about=about, folder=folder)
