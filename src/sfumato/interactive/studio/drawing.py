"""Pictures on demand: what the worker does for the tabs, with a preview of x0 while it samples."""

import base64
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import SfumatoWarning
from sfumato.interactive.studio.asked import Cells, Picture, Sample
from sfumato.interactive.studio.gallery import Gallery
from sfumato.interactive.studio.shelf import Shelf
from sfumato.interactive.studio.work import Job

if TYPE_CHECKING:
    from sfumato.diffusion.sampling import OnStep, Step
    from sfumato.generation.model import Model
    from sfumato.generation.samples import Samples

_PREVIEW_SHARE = 4
"""Between two previews passes at least so many times what one takes."""


def drawn(model: "Model", picture: Picture, on_step: "OnStep | None" = None) -> "Samples":
    """One picture, as the command and the Python that the studio gives for it make it."""
    how: dict[str, Any] = {**picture.changes(), "alone": picture.alone}
    if picture.negative_prompt:
        how["negative_prompt"] = picture.negative_prompt
    if on_step is not None and model.process is not None:  # a CAN has no steps
        how["on_step"] = on_step
    return model.sample(picture.prompt, picture.seed, **how)


def draw(job: Job, asked: Sample, shelf: Shelf, gallery: Gallery) -> None:
    """Each picture of `asked`; events `step` with a preview, and `picture`."""
    model = shelf.get(asked.model, check=job.check)
    for index, picture in enumerate(asked.pictures()):
        job.check()
        preview = previews(job, model, index=index, seed=picture.seed)
        samples = with_notes(job, lambda one=picture, told=preview: drawn(model, one, told))
        png = samples.png(0)
        where = {"name": gallery.add(png)} if asked.keep else {"png": data_url(png)}
        settings = {name: str(value) for name, value in samples.settings[0].items()}
        job.tell("picture", index=index, seed=picture.seed, settings=settings, **where)


def draw_cells(job: Job, asked: Cells, shelf: Shelf, gallery: Gallery) -> None:
    """Each cell that is not there yet; an event `cell` for all of them, those that are first."""
    missing: list[tuple[int, str, Picture]] = []
    for index, picture in enumerate(asked.pictures):
        model = shelf.get(picture.model, check=job.check)
        name = gallery.cell_name(depends_on(picture, model))
        if gallery.has_cell(name):
            job.tell("cell", index=index, name=name, cached=True)
        else:
            missing.append((index, name, picture))
    for index, name, picture in missing:
        job.check()
        model = shelf.get(picture.model)
        samples = with_notes(job, lambda one=picture, of=model: drawn(of, one, stopping(job)))
        gallery.add_cell(name, samples.png(0))
        job.tell("cell", index=index, name=name, cached=False)


def depends_on(picture: Picture, model: "Model") -> dict[str, Any]:
    """Everything that a picture of a model depends on. What is not given is the model's own, and
    two exports of the same weights may differ in that."""
    asked = picture.model_dump(include={"prompt", "negative_prompt", "seed", "alone"})
    own = model.with_(**picture.changes())
    return {**asked, **own.settings(), "device": str(own.device)}


def with_notes(job: Job, make: "Callable[[], Samples]") -> "Samples":
    """What `make` gives; what it warns of becomes events."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    for text in dict.fromkeys(
        str(one.message) for one in caught if issubclass(one.category, SfumatoWarning)
    ):
        job.tell("note", text=text)
    return made


def stopping(job: Job) -> "OnStep":
    """Ends sampling once the job is cancelled."""

    def on_step(step: "Step") -> None:
        job.check()

    return on_step


def previews(job: Job, model: "Model", *, index: int, seed: int) -> "OnStep":
    """Tells of every step, with a picture of x0 as often as it costs little."""
    due = 0.0

    def on_step(step: "Step") -> None:
        nonlocal due
        job.check()
        told: dict[str, Any] = {"index": index, "seed": seed, "step": step.index + 1}
        began = time.monotonic()
        if began >= due:
            told["png"] = data_url(_png(model, step))
            due = time.monotonic() + _PREVIEW_SHARE * (time.monotonic() - began)
        job.tell("step", of=step.count, **told)

    return on_step


def _png(model: "Model", step: "Step") -> bytes:
    from sfumato.base.images import png_bytes, to_pil

    return png_bytes(to_pil(model.codec.preview(step.x0[:1])[0]))


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
