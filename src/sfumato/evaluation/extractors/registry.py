"""All extractors by their keys: a new one is one entry here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.base.errors import InputError, nearest
from sfumato.config.sections import FeaturesConfig
from sfumato.evaluation.extractors.extractor import Device, FeatureExtractor, WeightsNotAtHandError


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an entry makes its extractor from."""

    config: FeaturesConfig
    device: Device
    judge: FeatureExtractor | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`about`: for a person, in a line; `distance`: what a Frechet distance on these features is
    called; `load`: the extractor, or `WeightsNotAtHandError`."""

    about: str
    distance: str
    load: Callable[[Source], FeatureExtractor]


def _inception(resize: str) -> Callable[[Source], FeatureExtractor]:
    def load(source: Source) -> FeatureExtractor:
        from sfumato.evaluation.extractors.inception_weights import load_inception

        given = source.config.inception
        return load_inception(
            None if given == "auto" else Path(given).expanduser(),
            resize=resize,
            device=source.device,
            may_download=source.config.may_download,
        )

    return load


def _clip(source: Source) -> FeatureExtractor:
    from sfumato.evaluation.extractors.vision import load_clip

    config = source.config
    return load_clip(config.clip, device=source.device, may_download=config.may_download)


def _dinov2(source: Source) -> FeatureExtractor:
    from sfumato.evaluation.extractors.vision import load_dinov2

    config = source.config
    return load_dinov2(config.dinov2, device=source.device, may_download=config.may_download)


def _small_clip(source: Source) -> FeatureExtractor:
    from sfumato.evaluation.extractors.small import load_small_clip

    given = source.config.small_clip
    folder = None if given == "bundled" else Path(given).expanduser()
    return load_small_clip(folder, device=source.device)


def _judge(source: Source) -> FeatureExtractor:
    if source.judge is None:
        raise WeightsNotAtHandError(
            "There is no judge of this data set.",
            hint="A judge needs two classes or more; the other metrics stand.",
        )
    return source.judge


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
    ),
    "dinov2": Entry(
        about="DINOv2's class token",
        distance="Frechet (DINOv2)",
        load=_dinov2,
    ),
    "small-clip": Entry(
        about="the image tower of sfumato's small CLIP",
        distance="Frechet (small CLIP)",
        load=_small_clip,
    ),
    "judge": Entry(
        about="last features of the data set's own classifier",
        distance="Frechet (judge)",
        load=_judge,
    ),
}


def load_extractor(
    key: str,
    config: FeaturesConfig | None = None,
    *,
    device: Device = "cpu",
    judge: FeatureExtractor | None = None,
) -> FeatureExtractor:
    """The extractor `key` of `EXTRACTORS`; `judge` is handed out for "judge".

    Judges are trained a floor above, so theirs comes in ready (`classifier_features`).
    `InputError` for an unknown key, and all that the loader raises.
    """
    if key not in EXTRACTORS:
        raise InputError(
            f"There is no feature extractor '{key}'.", hint=nearest(key, list(EXTRACTORS))
        )
    source = Source(config=config or FeaturesConfig(), device=device, judge=judge)
    return EXTRACTORS[key].load(source)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An extractor, or why there is none: `reason` and `hint` are "" where there is one. `title` is
    what the Frechet distance on it is called: FID with the published weights alone."""

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
    judge: FeatureExtractor | None = None,
) -> Iterator[Opened]:
    """Open `keys` one after another, so that only one network need be in memory.

    Weights that are not at hand become a `reason` for a row of the card. A damaged file, a path
    that does not exist and an unknown key are raised.
    """
    for key in keys:
        try:
            extractor = load_extractor(key, config, device=device, judge=judge)
        except WeightsNotAtHandError as error:
            title = EXTRACTORS[key].distance
            yield Opened(key=key, title=title, extractor=None, reason=error.what, hint=error.hint)
        else:
            yield Opened(key=key, title=distance_title(key, extractor), extractor=extractor)


def distance_title(key: str, extractor: FeatureExtractor) -> str:
    """What the Frechet distance on an extractor is called: FID is that on the published file."""
    from sfumato.evaluation.extractors.inception_weights import InceptionExtractor

    if isinstance(extractor, InceptionExtractor) and not extractor.published:
        return "Frechet (other Inception)"
    return EXTRACTORS[key].distance
