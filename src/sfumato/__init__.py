"""sfumato: train text-to-image diffusion models from scratch.

Importing the package is quick: torch and the libraries of models are loaded by the parts
that need them. The names below are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "DiffusionExperiment": "sfumato.config.schema",
    "Model": "sfumato.generation.model",
    "SfumatoError": "sfumato.base.errors",
    "TextToImagePipeline": "sfumato.generation.pipeline",
    "load_experiment": "sfumato.config.schema",
}

__all__ = [
    "DiffusionExperiment",
    "Model",
    "SfumatoError",
    "TextToImagePipeline",
    "load_experiment",
]

if TYPE_CHECKING:
    from sfumato.base.errors import SfumatoError
    from sfumato.config.schema import DiffusionExperiment, load_experiment
    from sfumato.generation.model import Model
    from sfumato.generation.pipeline import TextToImagePipeline


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from sfumato.base.memory import collection_paused

        with collection_paused():
            module = import_module(_EXPORTS[name])
        return getattr(module, name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
