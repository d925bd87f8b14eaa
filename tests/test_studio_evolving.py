"""The evolve tab below its API: a CAN, class accuracy, what is refused."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")

from sfumato.base.errors import InputError
from sfumato.base.files import read_json
from sfumato.config.adversarial import CanNetworkConfig
from sfumato.generation.can import CanModel, ClassReader
from sfumato.generation.model import Model
from sfumato.interactive.serving import Refusal
from sfumato.interactive.studio import evolving
from sfumato.interactive.studio.asked import NewEvolution, Picks, Sample
from sfumato.interactive.studio.drawing import draw
from sfumato.interactive.studio.gallery import Gallery
from sfumato.interactive.studio.settings import restored
from sfumato.interactive.studio.shelf import Shelf, description
from sfumato.interactive.studio.work import Cancelled, Job
from sfumato.models.can import Generator

NAMES = ("cubism", "ukiyo-e")


def nothing(model: Any) -> None:
    """Class accuracy is not measured."""


def job() -> Job:
    return Job(lambda job: None)


@pytest.fixture
def shelf_of() -> Callable[[Model], Shelf]:
    """A shelf with one model, called `one`, without loading."""

    def make(model: Model) -> Shelf:
        shelf = Shelf(["one"])
        shelf._models["one"] = model
        shelf._tell("one", state="ready", **description(model))
        return shelf

    return make


@pytest.fixture(scope="module")
def can() -> CanModel:
    torch.manual_seed(0)
    config = CanNetworkConfig(
        latent=4, generator_channels=(8, 8), discriminator_channels=(8, 8), conditional=True
    )
    network = Generator(config, channels=1, classes=2).eval().requires_grad_(False)
    known = {"experiment": "can", "images_seen": 0, "weights_sha256": "c" * 64}
    return CanModel(
        network=network,
        text_encoder=ClassReader(NAMES, NAMES),
        provenance={**known, "classes": list(NAMES), "captions": list(NAMES)},
    )


def test_a_can_draws_and_evolves(can, shelf_of):
    shelf, folder = shelf_of(can), Path("evolutions")
    (about,) = shelf.about()
    assert (about["can"], about["nfe"], about["examples"]) == (True, 1, list(NAMES))
    new = NewEvolution(model="one", name="a", size=6)
    evolving.begin(job(), new, shelf, folder, nothing)
    evolving.advance(job(), "a", Picks(generation=0, picks=(1, 4)), shelf, folder, nothing)
    known = evolving.told(folder, "a", shelf)
    assert known["model"] == "one"
    assert known["prompts"] == list(NAMES)
    assert known["generations"][1]["kept"] == 2
    gallery, made = Gallery(Path("gallery")), job()
    draw(made, Sample(model="one", prompt="cubism", seeds=(3,)), shelf, gallery)
    (name,) = gallery.names()
    found = restored(gallery.settings(name), shelf)
    assert found["notes"] == []
    assert found["picture"]["prompt"] == "cubism"
    assert gallery.path(name).read_bytes() == can.sample("cubism", 3).png(0)


def cancelled_at(number: int) -> Job:
    """A job that is cancelled when it is asked for the so-manieth time."""
    made, seen = job(), count(1)

    def check() -> None:
        made.cancelled = next(seen) >= number
        Job.check(made)

    made.check = check
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_cancelled_generation_ends_at_its_next_step_and_leaves_nothing(
    small_model, shelf_of, number
):
    """Of three steps, and before it is written."""
    shelf, folder = shelf_of(small_model), Path("evolutions")
    prompts = ("A handwritten digit 7",)
    new = NewEvolution(
        model="one", name="a", prompts=prompts, size=6, steps=3, sampler="DDIM", guidance=1
    )
    with pytest.raises(Cancelled):
        evolving.begin(cancelled_at(number), new, shelf, folder, nothing)
    assert not folder.exists()
    evolving.begin(cancelled_at(5), new, shelf, folder, nothing)  # nothing is asked after that
    before = files_of(folder)
    assert "evolutions/a/evolution.json" in before
    with pytest.raises(Cancelled):
        evolving.advance(
            cancelled_at(number), "a", Picks(generation=0, picks=(2,)), shelf, folder, nothing
        )
    assert files_of(folder) == before


def test_class_accuracy_is_the_share_of_the_classes_in_the_captions(small_model, shelf_of):
    """The classifier says 7 of every picture."""
    predict = lambda images: torch.full((len(images),), 7)  # noqa: E731
    classifier = SimpleNamespace(class_names=[str(digit) for digit in range(10)], predict=predict)
    prompts = ("A handwritten digit 7", "A handwritten digit 3", "A handwritten digit 7")
    new = NewEvolution(model="one", name="a", prompts=prompts, size=6)
    shelf, folder = shelf_of(small_model), Path("evolutions")
    evolving.begin(job(), new, shelf, folder, lambda model: classifier)
    assert read_json(folder / "a" / "accuracy.json") == {"0": 4 / 6}
    assert evolving.told(folder, "a", shelf)["generations"][0]["accuracy"] == 4 / 6


def test_a_classifier_that_cannot_be_opened_is_a_note(small_model, shelf_of):
    def classify(model: Any) -> None:
        raise InputError("There is none.", hint="Train one.")

    new = NewEvolution(model="one", name="a", prompts=("A handwritten digit 7",), size=6)
    made = job()
    evolving.begin(made, new, shelf_of(small_model), Path("evolutions"), classify)
    told = [(name, values) for _, name, values in made.after(0)]
    text = "Class accuracy is not measured: There is none. Train one."
    assert told == [("note", {"text": text}), ("generation", {"number": 0})]


def test_captions_that_name_no_class_have_no_accuracy(small_model, shelf_of):
    classifier = SimpleNamespace(class_names=["cat", "dog"], predict=None)
    new = NewEvolution(model="one", name="a", prompts=("A handwritten digit 7",), size=6)
    shelf, folder = shelf_of(small_model), Path("evolutions")
    evolving.begin(job(), new, shelf, folder, lambda model: classifier)
    assert evolving.told(folder, "a", shelf)["generations"][0]["accuracy"] is None


def test_what_is_refused(small_model, shelf_of, refused):
    shelf, folder = shelf_of(small_model), Path("evolutions")
    new = NewEvolution(model="one", name="a", prompts=("A handwritten digit 7",), size=6)
    evolving.begin(job(), new, shelf, folder, nothing)
    with refused(InputError):
        evolving.begin(job(), new, shelf, folder, nothing)
    with refused(InputError):
        evolving.advance(job(), "a", Picks(generation=5), shelf, folder, nothing)
    with refused(InputError):
        evolving.advance(job(), "a", Picks(generation=0), Shelf(["other"]), folder, nothing)
    with pytest.raises(Refusal):
        evolving.told(folder, "b", shelf)
    with pytest.raises(Refusal):
        evolving.image_path(folder, "a", "../evolution")
    Path("evolutions/broken").mkdir()
    Path("evolutions/broken/evolution.json").write_text("{}", "utf-8")
    assert [one["name"] for one in evolving.listed(folder)] == ["a"]
