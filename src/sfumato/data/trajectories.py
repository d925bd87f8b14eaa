"""Trajectories of a teacher: the states that it passes on the way from noise to an image.

A folder of parts, each whole or not there. The noise that a trajectory begins with is a function of
its seed and is not stored. `generation.trajectories` makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file
from sfumato.base.randomness import derived_seed
from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import initial_noise
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import STUDENT_SAMPLERS, Sampling

INDEX = "trajectories.json"
PART_SIZE = 32
"""Trajectories of one file."""


def student_times(process: Process, nfe: int) -> Tensor:
    """(nfe,) times at which a student of `nfe` steps evaluates its network, noisiest first."""
    sampling = Sampling(sampler=STUDENT_SAMPLERS[process.process], steps=nfe)
    return build_solver(process, sampling).times


def places_of(process: Process, nfe: int, *, levels: int) -> list[int]:
    """Which of the `levels` of a trajectory are those of a student of `nfe` steps. `InputError`
    where one of them is not passed."""
    passed = student_times(process, levels).tolist()
    wanted = student_times(process, nfe).tolist()
    if missed := set(wanted) - set(passed):
        raise InputError(
            f"Trajectories of {levels} levels do not pass {len(missed)} of the {nfe} levels of a "
            "student.",
            hint=f"In a row of students of {process.process} the levels of each are among those of "
            "the first: give --nfe one number, or others.",
        )
    return [passed.index(time) for time in wanted]


@dataclass(frozen=True)
class Trajectories:
    """A finished folder: `about` is its index, `captions` the distinct captions."""

    folder: Path
    about: dict[str, Any]

    def __len__(self) -> int:
        return self.about["request"]["count"]

    @property
    def levels(self) -> int:
        return self.about["request"]["levels"]

    @property
    def captions(self) -> list[str]:
        return self.about["captions"]

    @cached_property
    def states(self) -> Tensor:
        """(N, K + 1, C, H, W) float16: the states at K levels, and the image."""
        stored = torch.cat([part["states"] for part in self._parts])
        shape = (1, *stored.shape[2:])
        noise = [
            noise_of(self.about["request"]["seed"], row, shape[1:]) for row in range(len(self))
        ]
        return torch.cat([torch.stack(noise).half(), stored], dim=1)

    @cached_property
    def rows(self) -> Tensor:
        """(N,) int64 into `captions`."""
        return torch.cat([part["captions"] for part in self._parts])

    @cached_property
    def scales(self) -> Tensor:
        """(N,) float32: the guidance scale that each was made with."""
        return torch.cat([part["scales"] for part in self._parts])

    @cached_property
    def _parts(self) -> list[dict[str, Tensor]]:
        """The files; `DamagedDataError` for one that is not the one that was written."""
        from safetensors.torch import load_file

        parts = []
        for name, digest in self.about["parts"].items():
            file = self.folder / name
            if not file.is_file() or sha256_of_file(file) != digest:
                raise DamagedDataError(
                    f"{file} is damaged: its sha256 is not the recorded one.",
                    hint="Remove it; the same command makes it again.",
                )
            parts.append(load_file(file))
        return parts


def noise_of(seed: int, row: int, shape: Sequence[int]) -> Tensor:
    """(1, C, H, W) standard normal: where trajectory `row` begins."""
    channels, height, width = shape
    return initial_noise((channels, height, width), [generator_of(seed, row)])


def generator_of(seed: int, row: int) -> torch.Generator:
    """What draws the noise of trajectory `row`: far from the seeds that people count up from 0 and
    that evaluations use."""
    return torch.Generator("cpu").manual_seed(derived_seed("trajectory", seed, row))


def open_trajectories(folder: Path) -> Trajectories:
    """The trajectories in `folder`; `InputError` where they are missing or not all there yet."""
    index = folder / INDEX
    if not index.is_file():
        raise InputError(
            f"{folder} has no trajectories.", hint="`sfumato distil TEACHER` makes them."
        )
    found = Trajectories(folder, read_json(index))
    if len(found.about["parts"]) * PART_SIZE < len(found):
        raise InputError(
            f"{folder} is not finished.", hint="The `sfumato distil` that began it goes on with it."
        )
    return found
