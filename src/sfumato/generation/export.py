"""Export: a diffusers folder that samples with or without sfumato.

`pipeline.py` of the folder is the source of the modules in `RUNTIME`, joined into one file: there
is no second implementation. These modules need torch, diffusers and transformers and nothing else,
and import from each other by name alone.
"""

import ast
import re
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__
from sfumato.base.errors import InputError
from sfumato.base.files import make_folder, whole_folder, write_text
from sfumato.base.hub import quiet_loading
from sfumato.diffusion.process import VariancePreserving
from sfumato.diffusion.solvers.schedulers import build_scheduler
from sfumato.generation.model import Model
from sfumato.generation.pipeline import TextToImagePipeline
from sfumato.models.lora import write_adapter
from sfumato.training.state import load_state

FILE_NAME = "pipeline.py"
"""Where diffusers looks for the code of a pipeline folder."""
ADAPTER = "adapter"
"""In an exported folder of a run that trained an adapter: the adapter alone, for diffusers."""
HOW_FILES_ARE_READ = ("low_cpu_mem_usage", "use_safetensors", "local_files_only")
"""Arguments of diffusers' from_pretrained that say nothing of a bundle or a run."""
RUNTIME = (
    "base.errors",
    "base.images",
    "base.weights",
    "diffusion.process",
    "diffusion.guidance",
    "diffusion.sampling",
    "diffusion.known",
    "diffusion.interpolation",
    "diffusion.solvers.registry",
    "diffusion.solvers.schedulers",
    "diffusion.solvers.flow",
    "diffusion.solvers.edm",
    "diffusion.solvers.build",
    "models.codec",
    "models.text_projection",
    "models.time_rows",
    "text.encoder",
    "generation.asked",
    "generation.rows",
    "generation.samples",
    "generation.start",
    "generation.model",
    "generation.call",
    "generation.pipeline",
)
"""What sampling needs, in the order of imports."""

HEADER = f'''\
"""`TextToImagePipeline` of sfumato {__version__} with all that it needs, for diffusers alone.

Written on export from sfumato's own sources: change those, not this file. It needs torch,
diffusers, transformers, safetensors, numpy and pillow, and samples what sfumato samples:

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True
    )
    image = pipe("a prompt", guidance_scale=3, seeds=[0]).images[0]

SPDX-License-Identifier: Apache-2.0
"""

__version__ = "{__version__}"
'''
_IMPORT = re.compile(r"^ *from sfumato[\w.]* import (?:\([^)]*\)|[^\n(]*)\n", re.MULTILINE)


def export_model(model: Model, folder: Path) -> None:
    """Write `folder` whole or not at all: `model_index.json`, safetensors, `pipeline.py`.

    A folder already there is replaced.
    """
    pipeline = pipeline_of(model)
    # A call leaves its length in the tokenizer: the files would depend on what was sampled before.
    pipeline.tokenizer.backend_tokenizer.no_truncation()
    pipeline.tokenizer.backend_tokenizer.no_padding()
    with whole_folder(folder) as temporary, quiet_loading():
        pipeline.save_pretrained(temporary, safe_serialization=True)
        write_text(temporary / FILE_NAME, standalone_source())
        _write_adapter_of(model, temporary)


def _write_adapter_of(model: Model, folder: Path) -> None:
    """Of a run that trained an adapter, that too, beside the weights that it was added to."""
    from sfumato.generation.runs import chosen_checkpoint, experiment_of_run

    if model.folder is None:
        return
    lora = experiment_of_run(model.folder).training.lora
    if lora is None:
        return
    checkpoint = chosen_checkpoint(model.folder, model.provenance["images_seen"])
    file = checkpoint.verify(model.provenance["average"])
    write_adapter(load_state(file), lora, make_folder(folder / ADAPTER))


def pipeline_of(model: Model) -> TextToImagePipeline:
    """The diffusers face of a model."""
    scheduler = model.scheduler
    if scheduler is None and isinstance(model.process, VariancePreserving):
        scheduler = build_scheduler(
            model.sampling.sampler,
            model.process,
            timestep_spacing=model.sampling.timestep_spacing,
        )
    return TextToImagePipeline(
        unet=model.network,
        scheduler=scheduler,
        text_encoder=model.text_encoder.model,
        tokenizer=model.text_encoder.tokenizer,
        process=model.process.to_dict(),
        codec=model.codec.to_dict(),
        sampling=asdict(model.sampling),
        max_tokens=model.text_encoder.max_tokens,
        weak_unet=model.weak_network,
        vae=getattr(model.codec, "vae", None),
        provenance=dict(model.provenance),
    )


def open_pipeline(name: str | Path, kind: str, asked: dict[str, Any]) -> TextToImagePipeline:
    """The pipeline of a bundle or run (its `kind`), with what from_pretrained was `asked` for.

    `dtype`: one, or those of components by name, with `default` for the others.
    """
    from sfumato.generation.loading import load

    if unknown := asked.keys() - {"dtype", "torch_dtype", *HOW_FILES_ARE_READ}:
        raise InputError(
            f"{name} is a {kind}; from_pretrained takes no {min(unknown)}= for it.",
            hint=f"Change the pipeline once it is open, or `sfumato export` the {kind} and "
            "open that folder.",
        )
    pipeline = pipeline_of(load(name, device="cpu"))
    dtype = asked.get("dtype") or asked.get("torch_dtype")
    if not isinstance(dtype, dict):
        return pipeline if dtype is None else pipeline.to(dtype)
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            module.to(dtype.get(part, dtype.get("default", torch.float32)))
    return pipeline


def standalone_source() -> str:
    """The text of `pipeline.py`; `AssertionError` where two modules define one name."""
    defined: dict[str, str] = {}
    parts = [HEADER]
    for name in RUNTIME:
        source = (files("sfumato") / (name.replace(".", "/") + ".py")).read_text("utf-8")
        for found in _names_of(ast.parse(source)):
            assert defined.setdefault(found, name) == name, f"{found} in {defined[found]}, {name}"
        parts.append(f"# From sfumato.{name}\n\n{_without_docstring(_IMPORT.sub('', source))}")
    return "\n\n".join(parts)


def _names_of(module: ast.Module) -> set[str]:
    """The names that top-level definitions of a module bind."""
    names: set[str] = set()
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _without_docstring(source: str) -> str:
    """A module's text after its docstring; `if TYPE_CHECKING:` blocks that became empty pass."""
    text = source.split('"""', 2)[2].strip()
    return re.sub(r"if TYPE_CHECKING:\n(?!    )", "if TYPE_CHECKING:\n    pass\n", text) + "\n"
