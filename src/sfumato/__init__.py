"""sfumato: train text-to-image diffusion models from scratch.

    run = sfumato.train("digits", out="runs/a")
    images = run.model.sample(["A handwritten digit 7"], seeds=range(4), guidance=3)

Importing the package is quick: the names below are resolved on first use, with torch and the
libraries of models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ImageSet": "sfumato.evaluation.image_set",
    "Model": "sfumato.generation.model",
    "SfumatoError": "sfumato.base.errors",
    "TextToImagePipeline": "sfumato.generation.pipeline",
    "compare": "sfumato.evaluation.compare",
    "evaluate": "sfumato.evaluation.evaluate",
    "load": "sfumato.generation.loading",
    "train": "sfumato.methods.train",
}

__all__ = [
    "ImageSet",
    "Model",
    "SfumatoError",
    "TextToImagePipeline",
    "compare",
    "evaluate",
    "load",
    "train",
]

if TYPE_CHECKING:
    from sfumato.base.errors import SfumatoError
    from sfumato.evaluation.compare import compare
    from sfumato.evaluation.evaluate import evaluate
    from sfumato.evaluation.image_set import ImageSet
    from sfumato.generation.loading import load
    from sfumato.generation.model import Model
    from sfumato.generation.pipeline import TextToImagePipeline
    from sfumato.methods.train import train


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from sfumato.base.memory import collection_paused

        with collection_paused():
            module = import_module(_EXPORTS[name])
        return getattr(module, name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
