"""The weights of FID's Inception: where they lie, what file they are, and the extractor of them."""

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import cache_folder, sha256_of_file
from sfumato.evaluation.extractors.download import download
from sfumato.evaluation.extractors.extractor import (
    BatchedExtractor,
    Device,
    WeightsNotAtHandError,
    frozen,
)
from sfumato.evaluation.extractors.inception import (
    FEATURES,
    IMAGE_PX,
    Inception,
    Prepare,
    as_pytorch_fid,
    as_tensorflow1,
)

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE_BYTES = 95_628_359
"""Of that file, which pytorch-fid has as pt_inception-2015-12-05-6726825d.pth; converted from
Google's own, under the Apache licence 2.0."""
NAMES = (
    "weights-inception-2015-12-05-6726825d.pth",  # as torch-fidelity and torchmetrics save it
    "pt_inception-2015-12-05-6726825d.pth",  # as pytorch-fid saves it
)
VARIABLE = "SFUMATO_INCEPTION"
RESIZE_RULES: dict[str, tuple[str, Prepare]] = {
    "tensorflow1": (
        f"bilinear to {IMAGE_PX} px as TensorFlow 1 (corners not aligned, no antialiasing)",
        as_tensorflow1,
    ),
    "pytorch-fid": (
        f"bilinear to {IMAGE_PX} px as pytorch-fid (torch's, no antialiasing)",
        as_pytorch_fid,
    ),
}
"""How images are brought to the network's size: what it is called, and the function."""
WAYS_OUT = (
    f"Three ways out: let it download once where there is a network (91 MiB, checked); bring "
    f"{NAMES[0]} or {NAMES[1]} by hand and give its path with {VARIABLE}=PATH or "
    "--set evaluation.features.inception=PATH; or do without FID and the Inception Score: the "
    "other metrics do not need it."
)
_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class InceptionExtractor(BatchedExtractor):
    """`pool3` features (B, 2048) for FID, KID and precision; from them the logits for IS."""

    network: Inception
    published: bool
    """Whether the weights are the published file, on which FID is defined."""

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """This extractor's features (N, 2048) -> `logits_unbiased` (N, 1008), float32, CPU.

        What the Inception Score takes the softmax of; the network need not run again.
        """
        if features.ndim != 2 or features.shape[1] != FEATURES:
            raise InputError(f"Features are (N, {FEATURES}), not {tuple(features.shape)}.")
        return features @ self.network.fc.weight.detach().float().cpu().T


def load_inception(
    weights: Path | None = None,
    *,
    sha256: str | None = None,
    resize: str = "tensorflow1",
    device: Device = "cpu",
    may_download: bool = False,
) -> InceptionExtractor:
    """FID's Inception with the weights in `weights`, a .pth or .safetensors state dictionary.

    `weights` without a value: `$SFUMATO_INCEPTION`, else what `find_weights` finds, which must be
    the published file. One that is given may be another (a conversion to safetensors, say), which
    `name` then states by its hash; with `sha256` it must be that one. `resize`: a key of
    `RESIZE_RULES`. Errors: `InputError` (no such
    file), `WeightsNotAtHandError` (with ways out), `DamagedDataError` (a wrong checksum, not
    weights, or those of another network).
    """
    if weights is None and os.environ.get(VARIABLE):
        weights = Path(os.environ[VARIABLE]).expanduser()
    if weights is None:
        weights, sha256 = find_weights(may_download=may_download), SHA256
    if not weights.is_file():
        raise InputError(f"There is no file {weights}.", hint=WAYS_OUT)
    found = sha256_of_file(weights)
    if sha256 is not None and found != sha256:
        raise DamagedDataError(
            f"{weights} has a wrong checksum: sha256 {found[:16]}..., not {sha256[:16]}....",
            hint="It is truncated or another file. Remove it and let it be fetched again.",
        )
    state = read_state(weights)
    rule, prepare = RESIZE_RULES[resize]
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced
        network = Inception(prepare)
    _fill(network, state, weights)
    # Channels last would be 1.45 times as fast on a CPU, but sums in another order; as it is,
    # features are those of torch-fidelity to the last bit.
    frozen(network, device)
    published = found == SHA256
    which = "inception-2015-12-05" if published else "inception (not the published file)"
    return InceptionExtractor(
        name=f"{which} pool3, sha256:{found[:16]}, {rule}",
        dim=FEATURES,
        of_batch=network,
        rows=_ROWS,
        device=device,
        network=network,
        published=published,
    )


def find_weights(*, may_download: bool = False) -> Path:
    """The published file: in our cache, where the other tools leave it, or downloaded.

    `WeightsNotAtHandError` where it is in none of these places and must not be downloaded.
    """
    own = cache_folder() / "weights" / NAMES[0]
    theirs = [Path(torch.hub.get_dir()) / "checkpoints" / name for name in NAMES]
    for path in (own, *theirs):
        if path.is_file() and path.stat().st_size == SIZE_BYTES:  # theirs may have been cut short
            return path
    if may_download:
        return download(URL, own, sha256=SHA256, hint=WAYS_OUT)
    raise WeightsNotAtHandError("The weights of FID's Inception are not at hand.", hint=WAYS_OUT)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a .safetensors file, or in one of torch's without running code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise DamagedDataError(
            f"{path} holds no weights that can be read ({_first_line(error)}).",
            hint="It takes the state dictionary as .pth or .safetensors; NVIDIA's TorchScript file "
            "inception-2015-12-05.pt is code and is not taken. " + WAYS_OUT,
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DamagedDataError(
            f"{path} holds a {type(state).__name__}, not a dictionary of weights.", hint=WAYS_OUT
        )
    return state


def _fill(network: Inception, state: dict[str, Tensor], path: Path) -> None:
    """Put `state` into `network`; `DamagedDataError` says what does not fit."""
    wanted = network.state_dict()
    problems = [
        *(
            f"{name} is missing"
            for name in wanted
            if name not in state and "num_batches" not in name
        ),
        *(f"{name} is not one of its weights" for name in state if name not in wanted),
        *(
            f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DamagedDataError(
            f"{path} does not hold FID's Inception: {', '.join(problems[:3])}{more}.",
            hint="torchvision's inception_v3 is another network. " + WAYS_OUT,
        )
    network.load_state_dict(state, strict=False)


def _first_line(error: Exception) -> str:
    """What happened, without torch's advice to load code."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0].rstrip(".")
