"""Prompts to sample a set of images with, and the classes that they name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.base.randomness import generator_for
from sfumato.data.captions import captions_from_templates
from sfumato.data.records import Records


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """`prompts` (N), and `labels` (N,) into the class names of the data set, where it has classes.

    `templates`: the caption templates, or captions, behind them; `balanced`: as many prompts of
    each class.
    """

    prompts: Sequence[str]
    labels: Tensor | None = None
    templates: Sequence[str] = ()
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(
        cls,
        records: Records,
        count: int,
        *,
        labels: str = "balanced",
        templates: Sequence[str] = (),
        seed: int = 0,
    ) -> "PromptSet":
        """The classes that `records` have, in turn (or "random"), with the caption each was trained
        with first, or those of `templates`. A data set without classes gives captions of its
        images, chosen at random."""
        generator = generator_for("what is asked for", seed)
        if not records.class_names:
            chosen = torch.randint(len(records), (count,), generator=generator)
            rows = records.prompts[chosen, 0].tolist()
            return cls(prompts=[records.captions[int(row)] for row in rows])
        present = torch.tensor(records.present)
        classes = len(present)
        balanced = labels == "balanced"
        places = (
            torch.arange(count) % classes
            if balanced
            else torch.randint(classes, (count,), generator=generator)
        )
        asked = present[places]
        return cls(
            prompts=class_prompts(records, asked, templates),
            labels=asked,
            templates=templates,
            balanced=balanced,
        )

    @classmethod
    def of_captions(
        cls, captions: Sequence[str], classes: Tensor | None, count: int
    ) -> "PromptSet":
        """`captions` in turn; `classes` (len(captions),) are theirs, where they have some."""
        places = torch.arange(count) % len(captions)
        return cls(
            prompts=[captions[int(place)] for place in places],
            labels=None if classes is None else classes[places],
            templates=captions,
        )

    def first(self, count: int) -> "PromptSet":
        """The first `count` prompts."""
        labels = None if self.labels is None else self.labels[:count]
        return PromptSet(
            prompts=self.prompts[:count],
            labels=labels,
            templates=self.templates,
            balanced=self.balanced,
        )


def class_prompts(records: Records, labels: Tensor, templates: Sequence[str]) -> list[str]:
    """A caption for each of `labels` (N,): the class's own, or of each template in turn."""
    if not templates:
        return [records.class_captions[int(label)] for label in labels]
    classes, turn = len(records.class_names), len(records.present)
    captions = captions_from_templates(templates, records.class_names)
    return [
        captions[index // turn % len(templates) * classes + label]
        for index, label in enumerate(labels.tolist())
    ]
