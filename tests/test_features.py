"""Extractors of features: the contract, CLIP, DINOv2, the small CLIP and the classifier."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.images import to_float
from sfumato.config.sections import FeaturesConfig
from sfumato.evaluation.extractors.extractor import (
    BatchedExtractor,
    FeatureExtractor,
    WeightsNotAtHandError,
    features_of,
)
from sfumato.evaluation.extractors.inception import Inception
from sfumato.evaluation.extractors.registry import EXTRACTORS, available_extractors, load_extractor
from sfumato.evaluation.extractors.small import classifier_features, load_small_clip
from sfumato.evaluation.extractors.vision import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_clip,
    load_dinov2,
    normalized,
    short_side_to,
    squashed_to,
)
from sfumato.models.classifier import Classifier, build_classifier
from tests.messages import IN_BRACKETS


def pictures(count: int, height: int = 32, width: int = 32, *, channels: int = 3) -> Tensor:
    """Smooth random pictures; in white noise all images look alike to a network."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models, saved as transformers and sfumato save theirs."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

    from sfumato.config.sections import TowersConfig
    from sfumato.text.tokenizer import train_tokenizer
    from sfumato.text.towers import build_towers, save_towers

    root = tmp_path_factory.mktemp("models")
    found = {name: root / name for name in ("clip", "half", "dinov2", "small", "inception.pth")}
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = train_tokenizer(["a cat", "a dog"], vocab_size=520)
    words = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        clip = CLIPModel(
            CLIPConfig(
                text_config={**tiny, **words, "intermediate_size": 16},
                vision_config={
                    **tiny,
                    "intermediate_size": 16,
                    "image_size": 48,
                    "patch_size": 8,
                    "projection_dim": 7,  # not the one that counts
                },
                projection_dim=12,
            )
        )
        clip.save_pretrained(found["clip"])
        tokenizer.save_pretrained(found["clip"])
        half = CLIPVisionModelWithProjection.from_pretrained(
            found["clip"], config=_vision_half(clip.config)
        )
        half.save_pretrained(found["half"])
        dinov2 = Dinov2Model(Dinov2Config(**tiny, image_size=70, patch_size=14))
        dinov2.save_pretrained(found["dinov2"])
        torch.save(Inception().state_dict(), found["inception.pth"])
    sizes = TowersConfig(
        text_width=16, text_layers=1, text_heads=2, text_mlp=16, image_widths=(4, 4, 8, 8)
    )
    found["small"].mkdir()
    save_towers(build_towers(sizes, tokenizer, seed=0), tokenizer, sizes, found["small"])
    return found


def _vision_half(config):
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


@pytest.fixture(scope="module")
def config(folders: dict[str, Path]) -> FeaturesConfig:
    return FeaturesConfig(
        inception=str(folders["inception.pth"]),
        clip=str(folders["clip"]),
        dinov2=str(folders["dinov2"]),
        small_clip=str(folders["small"]),
    )


@pytest.fixture(scope="module")
def classifier() -> BatchedExtractor:
    network = build_classifier(channels=3, classes=4, seed=0)
    return classifier_features(network, identity="shapes sha256:0123", image_px=32)


@pytest.fixture(scope="module")
def extractors(config: FeaturesConfig, classifier: BatchedExtractor) -> dict[str, FeatureExtractor]:
    return {key: load_extractor(key, config, classifier=classifier) for key in EXTRACTORS}


@pytest.mark.parametrize("key", list(EXTRACTORS))
def test_features_do_not_depend_on_the_batch(
    extractors: dict[str, FeatureExtractor], key: str
) -> None:
    extractor = extractors[key]
    images = pictures(5)
    together = extractor(images)
    assert together.shape == (5, extractor.dim)
    assert together.dtype == torch.float32
    assert bool(together.isfinite().all())
    assert float((together[0] - together[1]).abs().max()) > 0
    alone = torch.cat([extractor(image[None]) for image in images.flip(0)]).flip(0)
    scale = float(together.abs().mean())
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("key", list(EXTRACTORS))
def test_grey_images_are_repeated(extractors: dict[str, FeatureExtractor], key: str) -> None:
    grey = pictures(2, channels=1)
    repeated = grey.repeat(1, 3, 1, 1)
    assert torch.equal(extractors[key](grey), extractors[key](repeated))


@pytest.mark.parametrize("key", list(EXTRACTORS))
def test_a_name_says_the_weights_and_the_resize_rule(
    extractors: dict[str, FeatureExtractor], key: str
) -> None:
    name = extractors[key].name
    assert "sha256:" in name
    assert "px" in name
    assert "/" not in name  # no path of this machine


@pytest.mark.parametrize("key", list(EXTRACTORS))
def test_images_that_are_none(extractors: dict[str, FeatureExtractor], key: str, refused) -> None:
    extractor = extractors[key]
    with refused(InputError):
        extractor(torch.rand(2, 3, 32, 32))
    for shape in ((3, 32, 32), (2, 32, 32, 3), (2, 4, 32, 32), (2, 3, 0, 32)):
        with refused(InputError):
            extractor(torch.zeros(shape, dtype=torch.uint8))
    assert extractor(torch.zeros(0, 3, 32, 32, dtype=torch.uint8)).shape == (0, extractor.dim)


class Counting:
    """The mean of each image, and how many images came in one call."""

    def __init__(self, rows: int) -> None:
        self.calls: list[int] = []
        self.extractor = BatchedExtractor(name="mean", dim=1, of_batch=self.of_batch, rows=rows)

    def of_batch(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return images.double().mean((1, 2, 3))[:, None]


def test_images_are_streamed_in_order() -> None:
    """Whatever they come in: one tensor, batches of any size, one image after another."""
    images = pictures(10, 8, 8)
    expected = images.double().mean((1, 2, 3))[:, None].float()
    for given in (images, images.split(3), list(images), [images[:1], images[1], images[2:]]):
        counting = Counting(rows=4)
        assert torch.equal(features_of(counting.extractor, given), expected)
        assert max(counting.calls) <= 4

    held: list[int] = []

    def generated(counting: Counting) -> Iterator[Tensor]:
        for number, image in enumerate(images):
            held.append(number - sum(counting.calls))
            yield image

    counting = Counting(rows=4)
    assert torch.equal(features_of(counting.extractor, generated(counting)), expected)
    assert max(held) < 4  # never more than a batch waits
    assert counting.calls == [4, 4, 2]


def test_streams_that_cannot_be_measured(refused) -> None:
    extractor = Counting(rows=4).extractor
    with refused(InputError):
        features_of(extractor, [pictures(1, 8, 8), pictures(1, 8, 8), pictures(1, 8, 9)])
    with refused(InputError):
        features_of(extractor, [])


def test_settings_of_the_run_around_change_nothing(
    extractors: dict[str, FeatureExtractor],
) -> None:
    images, extractor = pictures(2), extractors["clip"]
    expected = extractor(images)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(extractor(images), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


SIZES = [(32, 32), (48, 48), (33, 70), (301, 224), (500, 333)]


@pytest.mark.parametrize("size", SIZES)
def test_clip_pixels_equal_those_of_its_processor(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    images = pictures(2, *size)
    processor = CLIPImageProcessorPil()
    expected = processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="np")
    ours = normalized(short_side_to(images, 224), CLIP_MEAN, CLIP_STD).numpy()
    np.testing.assert_allclose(ours, expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_dinov2_pixels_equal_those_of_its_processor_told_to_squash(size: tuple[int, int]) -> None:
    from transformers import BitImageProcessorPil

    images = pictures(2, *size)
    processor = BitImageProcessorPil(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    expected = processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="np")
    ours = normalized(squashed_to(images, 224), IMAGENET_MEAN, IMAGENET_STD).numpy()
    np.testing.assert_allclose(ours, expected["pixel_values"], rtol=0, atol=1e-6)


def test_clip_gives_what_the_whole_model_gives(folders: dict[str, Path]) -> None:
    """Also where the image half's configuration states another width than the whole."""
    from transformers import CLIPImageProcessorPil, CLIPModel

    images = pictures(3, 40, 60)
    extractor = load_clip(str(folders["clip"]))
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    pixels = processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        state = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(state)
    assert extractor.dim == 12
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    half = load_clip(str(folders["half"]))
    assert torch.equal(half(images), extractor(images))
    assert half.name == extractor.name.replace("clip clip ", "clip half ")  # the same weights


def test_dinov2_gives_the_class_token(folders: dict[str, Path]) -> None:
    from transformers import Dinov2Model

    images = pictures(2, 40, 60)
    model = Dinov2Model.from_pretrained(folders["dinov2"]).eval()
    pixels = normalized(squashed_to(images, 224), IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output
    extractor = load_dinov2(str(folders["dinov2"]))
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)


def test_clip_reads_captions_as_transformers_does(folders: dict[str, Path], refused) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    captions = ["a cat", "a dog and a cat", "a cat"]
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folders["clip"])
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.text_model(**tokens).pooler_output
        expected = model.text_projection(pooled)
    found = load_clip(str(folders["clip"])).texts(captions)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0], found[2])
    with refused(InputError):
        load_clip(str(folders["half"])).texts(captions)


def test_the_small_clip_reads_captions(folders: dict[str, Path]) -> None:
    found = load_small_clip(folders["small"]).texts(["a cat", "a dog", "a cat"])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_the_small_clip_gives_its_unit_vectors(folders: dict[str, Path]) -> None:
    from sfumato.text.towers import load_towers

    images = pictures(4, 40, 40)
    towers, _ = load_towers(folders["small"])
    features = load_small_clip(folders["small"])(images)
    torch.testing.assert_close(features, towers.embed_uint8(images))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))


def test_the_classifier_takes_images_of_its_own_size_and_channels(
    classifier: BatchedExtractor,
    refused,
) -> None:
    with refused(InputError):
        classifier(pictures(1, 28, 28))
    grey = classifier_features(Classifier(channels=1, classes=4), identity="mnist", image_px=28)
    assert grey(pictures(2, 28, 28, channels=1)).shape == (2, 64)
    with refused(InputError):
        grey(pictures(2, 28, 28))


def test_the_classifiers_features_are_what_its_head_gets() -> None:
    classifier = build_classifier(channels=3, classes=4, seed=0)
    images = pictures(5)
    features = classifier_features(classifier, identity="shapes", image_px=32)(images)
    assert torch.equal(classifier.head(features), classifier(to_float(images, (-1.0, 1.0))))


def test_loading_leaves_the_global_generator_alone(config: FeaturesConfig) -> None:
    before = torch.get_rng_state()
    opened = list(available_extractors(config=config))
    assert [one.key for one in opened if one.extractor is None] == ["classifier"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_download_is_tried_only_for_what_is_not_here(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    from transformers import AutoConfig

    asked: list[bool] = []
    real = AutoConfig.from_pretrained

    def from_pretrained(place: str, *, local_files_only: bool):
        asked.append(local_files_only)
        if place == "nobody/has-this":
            raise OSError("no such repository")
        return real(place, local_files_only=local_files_only)

    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda api, name, timeout: None)
    load_clip(str(folders["clip"]), may_download=True)
    assert asked == [True]
    for may_download, tried in ((False, [True]), (True, [True, False])):
        asked.clear()
        with refused(WeightsNotAtHandError):
            load_clip("nobody/has-this", may_download=may_download)
        assert asked == tried


def test_weights_that_are_not_at_hand_become_a_reason(
    config: FeaturesConfig,
    classifier: BatchedExtractor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SFUMATO_INCEPTION", raising=False)
    absent = FeaturesConfig(
        inception="auto", clip="nobody/has-this", dinov2="nobody/has-that", small_clip=str(tmp_path)
    )
    opened = list(available_extractors(config=absent))
    assert [one.key for one in opened] == list(EXTRACTORS)
    for one in opened:
        assert one.extractor is None
        assert one.reason
        assert one.hint
    at_hand = list(available_extractors(("clip", "classifier"), config, classifier=classifier))
    assert [one.reason for one in at_hand] == ["", ""]
    assert at_hand[1].extractor is classifier


def test_what_a_person_has_to_mend_is_raised(
    folders: dict[str, Path], tmp_path: Path, refused
) -> None:
    with refused(InputError):
        list(available_extractors(["inceptoin"]))
    with refused(InputError):
        load_clip(str(tmp_path / "none"))
    with refused(InputError):
        load_clip(str(folders["dinov2"]))
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_dinov2(str(tmp_path))


def test_damaged_folders(folders: dict[str, Path], tmp_path: Path, refused) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(folders["dinov2"], folder)
    file = folder / "model.safetensors"
    state = load_file(file)
    some = next(iter(state))
    save_file({k: v for k, v in state.items() if k != some}, file, metadata={"format": "pt"})
    with refused(DamagedDataError):
        load_dinov2(str(folder))
    save_file({**state, some: torch.zeros(5)}, file, metadata={"format": "pt"})
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_dinov2(str(folder))
    file.write_bytes(file.read_bytes()[:500])
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_dinov2(str(folder))
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not weights")
    with refused(DamagedDataError, theirs=IN_BRACKETS):
        load_dinov2(str(folder))
    with refused(WeightsNotAtHandError, theirs=IN_BRACKETS):
        load_clip("nobody/has-this")


def test_an_extractor_cannot_be_changed_under_its_name(classifier: BatchedExtractor) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        classifier.name = "another"  # type: ignore[misc]
