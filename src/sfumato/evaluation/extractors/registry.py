"""All extractors by their keys: a new one is one entry here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.base.errors import InputError, nearest
from sfumato.config.sections import FeaturesConfig
from sfumato.evaluation.extractors.extractor import Device, FeatureExtractor, WeightsNotAtHandError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`about`: one line on the network; `distance`: the name of a Frechet distance on its features;
    `load`: the extractor, or `WeightsNotAtHandError`; `in_stages`: whether it has `stages`, through
    which gradients pass to images."""

    about: str
    distance: str
    load: Callable[[FeaturesConfig, Device], FeatureExtractor]
    in_stages: bool = False


def _inception(resize: str) -> Callable[[FeaturesConfig, Device], FeatureExtractor]:
    def load(config: FeaturesConfig, device: Device) -> FeatureExtractor:
        from sfumato.evaluation.extractors.inception_weights import load_inception

        given = config.inception
        return load_inception(
            None if given == "auto" else Path(given).expanduser(),
            resize=resize,
            device=device,
            may_download=config.may_download,
        )

    return load


def _clip(config: FeaturesConfig, device: Device) -> FeatureExtractor:
    from sfumato.evaluation.extractors.vision import load_clip

    return load_clip(config.clip, device=device, may_download=config.may_download)


def _dinov2(config: FeaturesConfig, device: Device) -> FeatureExtractor:
    from sfumato.evaluation.extractors.vision import load_dinov2

    return load_dinov2(config.dinov2, device=device, may_download=config.may_download)


def _small_clip(config: FeaturesConfig, device: Device) -> FeatureExtractor:
    from sfumato.evaluation.extractors.small import load_small_clip

    given = config.small_clip
    return load_small_clip(None if given == "bundled" else Path(given).expanduser(), device=device)


def _no_classifier(config: FeaturesConfig, device: Device) -> FeatureExtractor:
    raise WeightsNotAtHandError(
        "There is no classifier of this data set.",
        hint="A classifier needs two classes or more; the other metrics do not need it.",
    )


EXTRACTORS: dict[str, Entry] = {
    "inception": Entry(
        about="FID's Inception, pool3 (2048)",
        distance="FID",
        load=_inception("tensorflow1"),
    ),
    "inception-pytorch-fid": Entry(
        about="the same with pytorch-fid's resize, as the paper measured",
        distance="FID (pytorch-fid)",
        load=_inception("pytorch-fid"),
    ),
    "clip": Entry(
        about="CLIP's image embeddings",
        distance="Frechet (CLIP)",
        load=_clip,
        in_stages=True,
    ),
    "dinov2": Entry(
        about="DINOv2's class token",
        distance="Frechet (DINOv2)",
        load=_dinov2,
        in_stages=True,
    ),
    "small-clip": Entry(
        about="the image tower of sfumato's small CLIP",
        distance="Frechet (small CLIP)",
        load=_small_clip,
        in_stages=True,
    ),
    "classifier": Entry(
        about="last features of the data set's own classifier",
        distance="Frechet (classifier)",
        load=_no_classifier,  # unless one is given
    ),
}


def load_extractor(
    key: str,
    config: FeaturesConfig | None = None,
    *,
    device: Device = "cpu",
    classifier: FeatureExtractor | None = None,
) -> FeatureExtractor:
    """The extractor `key` of `EXTRACTORS`; for "classifier" the given one.

    `InputError` for an unknown key, and all that the loader raises.
    """
    if key not in EXTRACTORS:
        raise InputError(
            f"There is no feature extractor '{key}'.", hint=nearest(key, list(EXTRACTORS))
        )
    if key == "classifier" and classifier is not None:
        return classifier
    return EXTRACTORS[key].load(config or FeaturesConfig(), device)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An extractor, or why there is none: `reason` and `hint` are "" where there is one.
    `title`: the name of the Frechet distance on it."""

    key: str
    title: str
    extractor: FeatureExtractor | None
    reason: str = ""
    hint: str = ""


def available_extractors(
    keys: Sequence[str] = tuple(EXTRACTORS),
    config: FeaturesConfig | None = None,
    *,
    device: Device = "cpu",
    classifier: FeatureExtractor | None = None,
) -> Iterator[Opened]:
    """Open `keys` one after another, so that only one network need be in memory.

    Weights that are not at hand become a `reason` for a row of the card. A damaged file, a path
    that does not exist and an unknown key are raised.
    """
    for key in keys:
        try:
            extractor = load_extractor(key, config, device=device, classifier=classifier)
        except WeightsNotAtHandError as error:
            title = EXTRACTORS[key].distance
            yield Opened(key=key, title=title, extractor=None, reason=error.what, hint=error.hint)
        else:
            yield Opened(key=key, title=distance_title(key, extractor), extractor=extractor)


def distance_title(key: str, extractor: FeatureExtractor) -> str:
    """The name of the Frechet distance on an extractor: FID is that on the published file alone."""
    if not getattr(extractor, "published", True):
        return "Frechet (other Inception)"
    return EXTRACTORS[key].distance
