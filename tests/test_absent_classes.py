"""A data set may name classes that none of its images has, as a part of WikiArt does."""

from dataclasses import replace

import pytest
import torch

from sfumato.config.sections import DataConfig
from sfumato.data.records import Records, load_records
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.novelty import STYLE_AMBIGUITY
from sfumato.evaluation.prompt_set import PromptSet, class_prompts
from sfumato.methods.can import _of_present_classes

DIGITS = DataConfig(
    source="digits", resolution=8, channels=1, caption="A handwritten digit {label}"
)
ABSENT = (0, 3, 9)


@pytest.fixture(scope="module")
def records() -> Records:
    every = load_records(DIGITS, "test")
    keep = ~torch.isin(every.labels, torch.tensor(ABSENT))
    return replace(
        every, labels=every.labels[keep], prompts=every.prompts[keep], images=every.images[keep]
    )


def test_they_are_not_asked_for(records: Records) -> None:
    assert records.present == [1, 2, 4, 5, 6, 7, 8]
    balanced = PromptSet.of(records, 21)
    assert balanced.labels is not None
    assert balanced.labels.tolist() == records.present * 3
    assert balanced.prompts[0] == "A handwritten digit 1"
    drawn = PromptSet.of(records, 200, labels="random")
    assert drawn.labels is not None
    assert set(drawn.labels.tolist()) == set(records.present)
    assert set(drawn.prompts) == {f"A handwritten digit {label}" for label in records.present}


def test_nor_shown(records: Records) -> None:
    captions, labels = records.examples(3)
    assert labels == ["1", "2", "4"]
    assert captions == [f"A handwritten digit {label}" for label in labels]


def test_templates_follow_each_other_by_rounds_of_those_that_are_there(records: Records) -> None:
    asked = torch.tensor(records.present * 2)
    prompts = class_prompts(records, asked, ("digit {label}", "the number {label}"))
    assert prompts == [f"digit {n}" for n in records.present] + [
        f"the number {n}" for n in records.present
    ]


def test_nor_styles_of_a_can(records: Records) -> None:
    found = _of_present_classes(records)
    assert list(found.class_names) == [str(label) for label in records.present]
    assert found.present == list(range(len(records.present)))
    names = [found.class_names[label] for label in found.labels.tolist()]
    assert names == [str(label) for label in records.labels.tolist()]
    assert found.class_captions[0] == "A handwritten digit 1"


def test_where_all_are_there_nothing_changes() -> None:
    every = load_records(DIGITS, "test")
    found = PromptSet.of(every, 25)
    assert found.labels is not None
    assert found.labels.tolist() == [n % 10 for n in range(25)]


def test_ambiguity_is_between_the_classes_that_are_there() -> None:
    """Three of five classes have images: the same logit for these is undecided, whatever the
    others have."""
    logits = torch.tensor([[2.0, 9.0, 2.0, -3.0, 2.0]])
    generated = ImageFeatures(all_rows=logits, head=lambda rows: rows)
    reference = ImageFeatures(all_rows=logits, labels=torch.tensor([4, 0, 2, 2]))
    score = STYLE_AMBIGUITY.compute(generated, reference)
    assert score.estimate.value == pytest.approx(1, abs=1e-12)
