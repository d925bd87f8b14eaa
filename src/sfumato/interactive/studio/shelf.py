"""The models of a studio: loaded in the background, one after the other."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sfumato.base.errors import InputError, SfumatoError
from sfumato.interactive.serving import Refusal

if TYPE_CHECKING:
    from sfumato.generation.model import Model

State = Literal["waiting", "loading", "ready", "failed"]


class Shelf:
    """Models by the name they were given."""

    def __init__(self, names: Sequence[str], *, device: str = "auto") -> None:
        self.device = device
        self._about: dict[str, dict[str, Any]] = {
            name: {"name": name, "state": "waiting", "stage": "waiting", "since": time.monotonic()}
            for name in dict.fromkeys(names)
        }
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin to load."""
        threading.Thread(target=self._load_all, name="loading", daemon=True).start()

    def get(self, name: str, *, check: Callable[[], None] = lambda: None) -> "Model":
        """A model, waited for while it loads; `check` may raise meanwhile. `Refusal` (404) for one
        that is not there, `InputError` for one that could not be loaded."""
        if name not in self._about:
            known = ", ".join(self._about)
            raise Refusal(f"There is no model '{name}' here.", status=404, hint=f"Known: {known}.")
        while self._about[name]["state"] not in ("ready", "failed"):
            check()
            with self._changed:
                self._changed.wait(timeout=0.2)
        if name not in self._models:
            about = self._about[name]
            raise InputError(f"{name} could not be loaded: {about['error']}", hint=about["hint"])
        return self._models[name]

    def about(self) -> list[dict[str, Any]]:
        """Of each model: `state`, and how it samples once it is ready."""
        now = time.monotonic()
        return [
            {
                **{key: value for key, value in about.items() if key != "since"},
                "seconds": round(about.get("seconds", now - about["since"]), 1),
            }
            for about in self._about.values()
        ]

    def of_weights(self, sha256: str) -> str | None:
        """The name of the model with weights of that hash."""
        for name, model in self._models.items():
            if model.provenance.get("weights_sha256") == sha256:
                return name
        return None

    def ready(self, name: str) -> "Model | None":
        """A model where it is loaded already."""
        return self._models.get(name)

    def _load_all(self) -> None:
        for name in self._about:
            self._tell(name, state="loading", stage="opening the libraries", since=time.monotonic())
            try:
                self._load(name)
            except SfumatoError as error:
                self._tell(name, state="failed", error=error.what, hint=error.hint)
            except Exception as error:
                traceback.print_exc()
                self._tell(name, state="failed", error=str(error), hint="The terminal says why.")

    def _load(self, name: str) -> None:
        from sfumato.generation.loading import load

        self._tell(name, stage="reading the weights")
        model = load(name, device=self.device)
        about = description(model)
        seconds = time.monotonic() - self._about[name]["since"]
        self._models[name] = model
        self._tell(name, **about, state="ready", stage="ready", seconds=seconds)

    def _tell(self, name: str, **values: Any) -> None:
        with self._changed:
            self._about[name] = {**self._about[name], **values}
            self._changed.notify_all()


def description(model: "Model") -> dict[str, Any]:
    """What a page needs to know to offer a model's settings."""
    from sfumato.generation.subjects import known_examples

    known = model.provenance
    about: dict[str, Any] = {
        "can": model.process is None,
        "image_shape": list(model.image_shape),
        "nfe": model.nfe(),
        "experiment": known.get("experiment", ""),
        "images_seen": known.get("images_seen", ""),
        "weights_sha256": known.get("weights_sha256", ""),
        "examples": known_examples(model),
    }
    if about["can"]:
        return about
    return {**about, **_sampling(model)}


def _sampling(model: "Model") -> dict[str, Any]:
    from sfumato.diffusion.guidance import FREE_FORMS, parse_form
    from sfumato.diffusion.solvers.registry import SAMPLERS

    sampling = model.sampling
    samplers = SAMPLERS[model.process.process]
    folded = sampling.form.folded
    forms = [sampling.guidance] if folded else [str(parse_form(form)) for form in FREE_FORMS]
    return {
        "distilled": folded,
        "defaults": {
            "guidance": sampling.guidance_scale,
            "form": sampling.guidance,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
        },
        "samplers": [sampling.sampler] if folded else list(samplers),
        "draws_noise": [name for name, one in samplers.items() if one.draws_noise],
        "forms": forms,
    }
