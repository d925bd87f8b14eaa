"""The evolve tab: histories of `sfumato evolve` in folders, bred by clicks."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import read_json, write_json
from sfumato.base.lock import locked
from sfumato.interactive.serving import Refusal, inside
from sfumato.interactive.studio.asked import NewEvolution, Picks
from sfumato.interactive.studio.shelf import Shelf
from sfumato.interactive.studio.work import Job

if TYPE_CHECKING:
    from sfumato.evaluation.classifier import ImageClassifier
    from sfumato.generation.model import Model
    from sfumato.interactive.evolution import Evolution

HISTORY, ACCURACY = "evolution.json", "accuracy.json"
MOST_EVOLUTIONS = 200
Classify = Callable[["Model"], "ImageClassifier | None"]


# Reading ------------------------------------------------------------------------------------------


def listed(folder: Path) -> list[dict[str, Any]]:
    """Name, prompts and number of generations of each history, by name."""
    found = []
    for file in sorted(folder.glob(f"*/{HISTORY}")):
        try:
            known = read_json(file)
            generations = len(known["generations"])
            found.append(
                {"name": file.parent.name, "prompts": known["prompts"], "generations": generations}
            )
        except (SfumatoError, KeyError, TypeError):  # not what sfumato wrote
            continue
    return found


def told(folder: Path, name: str, shelf: Shelf) -> dict[str, Any]:
    """Everything about a history: prompts, settings and generations, each with the deviation of its
    noise and, where it was measured, its class accuracy."""
    known = read_json(_history(folder, name))
    accuracies = _accuracies(folder / name)
    generations = [
        {**one, "number": number, "accuracy": accuracies.get(str(number))}
        for number, one in enumerate(known["generations"])
    ]
    model = shelf.of_weights(known["settings"].get("weights_sha256", ""))
    return {**known, "name": name, "model": model, "generations": generations}


def image_path(folder: Path, name: str, image: str) -> Path:
    """`Refusal` (404) for a picture that is not there."""
    _history(folder, name)
    path = folder / name / "images" / f"{image}.png"
    if not re.fullmatch(r"[0-9a-f]{16}", image) or not path.is_file():
        raise Refusal("There is no such picture.", status=404)
    return path


def _history(folder: Path, name: str) -> Path:
    file = inside(folder, name) / HISTORY
    if not file.is_file():
        raise Refusal(f"There is no evolution '{name[:80]}'.", status=404)
    return file


def _accuracies(folder: Path) -> dict[str, Any]:
    file = folder / ACCURACY
    return read_json(file) if file.is_file() else {}


# Breeding -----------------------------------------------------------------------------------------


def check_new(folder: Path, asked: NewEvolution) -> None:
    """`InputError` for a name that is taken, and for too many evolutions."""
    if (folder / asked.name).exists():
        raise InputError(f"There is an evolution '{asked.name}'.", hint="Give another name.")
    if len(listed(folder)) >= MOST_EVOLUTIONS:
        raise InputError(
            f"There are {MOST_EVOLUTIONS} evolutions.", hint=f"Remove some from {folder}."
        )


def begin(job: Job, asked: NewEvolution, shelf: Shelf, folder: Path, classify: Classify) -> None:
    """Generation 0; an event `generation`. A job that is cancelled before leaves nothing."""
    from sfumato.interactive.evolution import Evolution
    from sfumato.interactive.operators import Operators

    check_new(folder, asked)
    model = shelf.get(asked.model, check=job.check).with_(**asked.changes())
    own = folder / asked.name
    with locked(own):
        history = Evolution.begin(
            model,
            list(asked.prompts) or _class_prompts(model),
            own,
            seed=asked.seed,
            size=asked.size,
            operators=Operators(angle=asked.angle),
            check=job.check,
        )
        _measure(job, history, 0, classify)
    job.tell("generation", number=0)


def _class_prompts(model: "Model") -> list[str]:
    """Of a CAN without prompts, every class; else none."""
    return model.examples()[0] if model.process is None else []


def advance(
    job: Job, name: str, asked: Picks, shelf: Shelf, folder: Path, classify: Classify
) -> None:
    """The generation that follows from picks; an event `generation` with its number."""
    from sfumato.interactive.evolution import Evolution

    known = read_json(_history(folder, name))
    model = _model_of(known["settings"], shelf)
    own = folder / name
    with locked(own):
        history = Evolution.resume(model, own)
        number = history.advance(asked.picks, generation=asked.generation, check=job.check)
        _measure(job, history, number, classify)
    job.tell("generation", number=number)


def _model_of(settings: dict[str, Any], shelf: Shelf) -> "Model":
    """The model of a history, set as it was; `InputError` where it is not open here."""
    name = shelf.of_weights(settings.get("weights_sha256", ""))
    if name is None:
        raise InputError(
            f"The model of this evolution, {settings.get('experiment', 'unknown')}, is not open.",
            hint="Give it to `sfumato studio` too, and wait until it is loaded.",
        )
    from sfumato.interactive.evolution import sampling_of

    return shelf.get(name).with_(**sampling_of(settings))


def _measure(job: Job, history: "Evolution", number: int, classify: Classify) -> None:
    """Keep the class accuracy of a generation, where there is a classifier; one that cannot be
    opened is a note, and the generation stays."""
    known = _accuracies(history.folder)
    if str(number) in known:
        return
    try:
        classifier = classify(history.model)
    except SfumatoError as error:
        job.tell("note", text=f"Class accuracy is not measured: {error}")
        return
    if classifier is None:
        return
    known[str(number)] = class_accuracy(history, number, classifier)
    write_json(history.folder / ACCURACY, known)


def class_accuracy(
    history: "Evolution", number: int, classifier: "ImageClassifier"
) -> float | None:
    """Share of a generation's pictures that the classifier assigns to the class in their caption,
    that of the largest weight; None where captions name no class."""
    from sfumato.generation.can import ClassReader

    reader = ClassReader(classifier.class_names, classifier.class_names)
    images = history.generations[number].images
    captions = [json.loads(str(history.genome(image)))["captions"] for image in images]
    try:
        wanted = [reader.label(max(one, key=one.__getitem__)) for one in captions]
    except InputError:
        return None
    predicted = classifier.predict(history.pixels(number)).tolist()
    return sum(a == b for a, b in zip(wanted, predicted, strict=True)) / len(wanted)
