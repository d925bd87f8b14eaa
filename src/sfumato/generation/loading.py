"""Opening a trained model: a run, an exported folder, a bundle, or one that comes with sfumato."""

from dataclasses import replace
from pathlib import Path

import torch

from sfumato.base.device import dtype_name
from sfumato.base.errors import InputError
from sfumato.generation.bundle_names import EXPERIMENT, check_model, is_bundle, is_can, model_folder
from sfumato.generation.bundles import open_bundle
from sfumato.generation.model import Model
from sfumato.models.speed import compile_blocks


def load(
    path: str | Path,
    *,
    device: str = "auto",
    checkpoint: int | None = None,
    average: str | None = None,
    dtype: "str | torch.dtype" = "float32",
    compile: bool = False,
) -> Model:
    """Open a run folder, an exported folder, a bundle, or a model that comes with sfumato
    (`bundled:NAME`). Of a CAN it is a `CanModel`.

    `checkpoint`: of a run, the one after so many images instead of the newest; `average`: one of
    its averages. `dtype`: what the network computes in, float32, float16 or bfloat16; noise and
    the solver's arithmetic are float32 in any case. `compile` compiles the network's blocks, which
    takes a minute at the first images and pays for hundreds of them on a GPU. Images of another
    dtype and of a compiled network are the same to rounding, not to the last bit, and their
    settings say so. `InputError` where `path` is no model, the run has no such checkpoint or
    there is no such dtype, `DamagedDataError` for a file that was altered.
    """
    kind = getattr(torch, dtype_name(dtype))
    model = _opened(path, resolve_device(device), checkpoint, average)
    for module in (model.network, model.weak_network):
        if module is None:
            continue
        if kind != torch.float32:
            torch.nn.Module.to(module, kind)  # diffusers' own method warns of no module at all
        if compile:
            compile_blocks(module)
    return replace(model, compiled=compile)


def _opened(
    path: str | Path, where: torch.device, checkpoint: int | None, average: str | None
) -> Model:
    check_model(path)
    path = model_folder(path)
    if (path / EXPERIMENT).is_file():
        if is_can(path):
            from sfumato.generation.can import can_of_run

            return can_of_run(path, where, checkpoint, average)
        from sfumato.generation.runs import load_run

        return load_run(path, where, checkpoint, average)
    if checkpoint is not None or average is not None:
        raise InputError(
            f"{path} is not a run, so it has one set of weights and no checkpoints.",
            hint="Give the folder of the run that it came from.",
        )
    if is_can(path):
        from sfumato.generation.can import can_of_export

        return can_of_export(path, where)
    if is_bundle(path):
        model = open_bundle(path)
    else:
        from sfumato.generation.pipeline import TextToImagePipeline

        try:
            model = TextToImagePipeline.from_pretrained(path, low_cpu_mem_usage=False).model
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a complete pipeline: {error}") from error
    vae = getattr(model.codec, "vae", None)
    for module in (model.network, model.weak_network, model.text_encoder.model, vae):
        if module is not None:
            module.to(where)
    return model


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
