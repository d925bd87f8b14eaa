"""Training an autoencoder, and how well test images come back from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import ConfigError
from sfumato.base.files import read_json, whole_folder, write_json
from sfumato.config.schema import VaeExperiment
from sfumato.data.loading import DeviceBatches, refuse_stream
from sfumato.data.records import Records, load_records, trained_on
from sfumato.data.survey import settle
from sfumato.evaluation.extractors.extractor import BatchedExtractor, FeatureExtractor
from sfumato.evaluation.extractors.registry import EXTRACTORS, load_extractor
from sfumato.evaluation.level_losses import chosen
from sfumato.evaluation.metrics.fidelity import psnr
from sfumato.evaluation.reconstruction import (
    Recode,
    Reconstructed,
    mean_figures,
    simple_codecs,
)
from sfumato.methods.codecs import LINEAR_IMAGES, training_images
from sfumato.models import vae as vaes
from sfumato.models.autoencoder import build_discriminator, build_vae
from sfumato.models.codec import VaeCodec
from sfumato.models.codec_fitting import fit_linear_codec
from sfumato.models.preview import build_preview
from sfumato.report.grids import labelled_grid
from sfumato.training.distributed import World
from sfumato.training.features import FeatureDistance
from sfumato.training.hooks import MeasureHook, SampleHook
from sfumato.training.loop import Run
from sfumato.training.objectives.vae import VaeObjective
from sfumato.training.records import RECONSTRUCTION
from sfumato.training.run import Method

FILE_NAME = "reconstruction.json"
"""In the run folder: how well test images come back from the result."""
_COLUMNS = 8
_TITLES = {"vae": "VAE", "preview": "preview", "pca": "PCA", "bicubic": "bicubic"}


@dataclass(kw_only=True)
class VaeRun(Run):
    """A run, and `measure`, which says how well test images come back by now."""

    test: "_Test"


def _resolve(experiment: VaeExperiment) -> VaeExperiment:
    data = settle(experiment.data)
    # Made anew, so that sizes found by a look at the images are checked.
    return VaeExperiment.model_validate(
        {**experiment.model_dump(mode="json"), "data": data.model_dump(mode="json")}
    )


def _build(experiment: VaeExperiment, folder: Path, device: torch.device, world: World) -> VaeRun:
    """`ConfigError` for a stream, for more numbers than a patch has, and for an extractor that
    cannot be trained against."""
    data, training = experiment.data, experiment.training
    refuse_stream(data, experiment.name)
    records = load_records(data, "train")
    objective = _objective(experiment, records, device)
    test = _test(experiment, records, objective, device)
    return VaeRun(
        folder=folder,
        objective=objective,
        batches=DeviceBatches(
            records, seed=experiment.seed, batch_size=training.batch_size, device=device
        ),
        seed=experiment.seed,
        total_images=training.images,
        device=device,
        provenance={"experiment": experiment.name},
        hooks=(
            SampleHook(
                folder / "samples", every_images=training.sample_every_images, sample=test.grid
            ),
            MeasureHook(
                folder / RECONSTRUCTION,
                every_images=training.measure_every_images,
                measure=test.measure,
            ),
        ),
        test=test,
    )


def _objective(experiment: VaeExperiment, records: Records, device: torch.device) -> VaeObjective:
    network, training, seed = experiment.network, experiment.training, experiment.seed
    channels, resolution = records.images.shape[1:3]
    values = channels * network.factor**2
    if network.latent_channels > values:
        raise ConfigError(
            f"network.latent_channels is {network.latent_channels}, but {network.factor} x "
            f"{network.factor} x {channels} pixels have only {values} values.",
            hint=f"Choose at most {values}.",
        )
    vae = build_vae(network, channels=channels, resolution=resolution, seed=seed).to(device)
    judge = None
    if training.adversarial_weight > 0:
        judge = build_discriminator(network, channels=channels, seed=seed).to(device)
    preview = None
    if network.preview_channels > 0:
        preview = build_preview(network, channels=channels, seed=seed).to(device)
    return VaeObjective(vae, judge, preview, _distance(experiment, device), training)


def _distance(experiment: VaeExperiment, device: torch.device) -> FeatureDistance | None:
    training = experiment.training
    if training.perceptual_weight == 0:
        return None
    entry = EXTRACTORS.get(training.perceptual)
    if entry is not None and not entry.in_stages:  # its weights need not be fetched to know it
        raise ConfigError(
            f"training.perceptual: gradients do not pass through '{training.perceptual}'.",
            hint="Choose small-clip, clip or dinov2, or set training.perceptual_weight=0.",
        )
    extractor = load_extractor(training.perceptual, training.features, device=device)
    assert isinstance(extractor, BatchedExtractor)
    assert extractor.stages is not None
    return FeatureDistance((-1.0, 1.0), extractor.stages)


# What is measured ---------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Test:
    """Test images, the codec in training and the simple codecs beside it."""

    codec: VaeCodec
    others: Mapping[str, Recode]
    real: Reconstructed
    shown: Tensor
    """Those of a grid."""
    _known: dict[str, Any] | None = None
    """What the simple codecs reach, which does not change."""

    def _own(self) -> dict[str, Recode]:
        codec = self.codec
        own: dict[str, Recode] = {"vae": lambda images: codec.decode(codec.encode(images))}
        if codec.preview_decoder is not None:
            own["preview"] = lambda images: codec.preview(codec.encode(images))
        return own

    def measure(self) -> dict[str, Any]:
        """A record: the codec's figures and its previews', beside those of PCA and bicubic."""
        if self._known is None:
            self._known = self._measured(self.others)[1]
        images, own = self._measured(self._own())
        if "preview" in images:
            near = psnr(images["preview"], images["vae"])
            own["preview"] |= mean_figures({"psnr_to_vae": near})
        about = {"count": len(self.real.images), "extractor": self.real.extractor.name}
        return {**about, **own, **self._known}

    def _measured(self, recodes: Mapping[str, Recode]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        images = {name: self.real.through(one) for name, one in recodes.items()}
        return images, {name: self.real.measure(one) for name, one in images.items()}

    def grid(self) -> bytes:
        """A PNG: real images above what comes back of them, by each codec, the VAE last: the last
        row is what `sfumato watch` shows."""
        images = self.shown
        recodes = dict(reversed({**self._own(), **self.others}.items()))
        rows = {_TITLES[name]: recode(images) for name, recode in recodes.items()}
        return labelled_grid(
            [images, *rows.values()],
            row_labels=["real", *rows],
            column_labels=[str(number + 1) for number in range(len(images))],
        )


def _test(
    experiment: VaeExperiment, records: Records, objective: VaeObjective, device: torch.device
) -> _Test:
    training, network = experiment.training, experiment.network
    linear = fit_linear_codec(
        training_images(experiment.data, records, seed=experiment.seed, most=LINEAR_IMAGES),
        factor=network.factor,
        channels=network.latent_channels,
    )
    # Files may be sorted by class: their first images would be of few classes.
    test = load_records(experiment.data, "test")
    images = test.images[chosen(test, training.measured_images)]
    extractor: FeatureExtractor = load_extractor(
        training.distance, training.features, device=device
    )
    return _Test(
        codec=VaeCodec(
            objective.average.module,
            preview_decoder=None if objective.preview is None else objective.preview_average.module,
        ),
        others=simple_codecs(linear),
        real=Reconstructed.of(images, extractor),
        shown=test.images[chosen(test, _COLUMNS)],
    )


# The result ---------------------------------------------------------------------------------------


def _finish(experiment: VaeExperiment, run: VaeRun) -> None:
    """Write the averaged autoencoder as diffusers has it, its decoder of previews, and how well
    test images come back."""
    if (run.folder / FILE_NAME).exists():
        return
    codec = run.test.codec
    if not (run.folder / vaes.VAE).is_dir():
        with whole_folder(run.folder / vaes.VAE) as temporary:
            vaes.save_vae(codec, temporary)
    about = {
        **run.test.measure(),
        "images_seen": run.images_seen,
        "seed": run.seed,
        "weights_sha256": codec.to_dict()["sha256"],
        "distance": EXTRACTORS[experiment.training.distance].distance,
        "environment": environment(),
        "sfumato": __version__,
        "date": now()[:10],
    }
    write_json(run.folder / FILE_NAME, about)


def _describe(experiment: VaeExperiment, run: VaeRun) -> Sequence[str]:
    about, network = read_json(run.folder / FILE_NAME), experiment.network
    lines = [f"{about['count']:,} test images that came back (PSNR and SSIM: higher is better):"]
    for name in [name for name in _TITLES if name in about]:
        found = about[name]
        lines.append(
            f"  {_TITLES[name]:<8} PSNR {found['psnr']:5.2f} ± {found['psnr_half']:.2f} dB   "
            f"SSIM {found['ssim']:.3f} ± {found['ssim_half']:.3f}   "
            f"{about['distance']} {found['frechet']:.4f}"
        )
    if "preview" in about:
        near = about["preview"]["psnr_to_vae"]
        lines.append(f"Previews are at {near:.2f} dB from what the VAE itself decodes.")
    return (
        f"Autoencoder in {run.folder / vaes.VAE}; its reconstructions over training are in "
        f"{run.folder / 'samples'}.",
        *lines,
        f"Train on its latents: sfumato train PRESET --set codec.kind=vae "
        f"--set codec.vae={run.folder} --set codec.factor={network.factor} "
        f"--set codec.channels={network.latent_channels}",
    )


VAE = Method(
    schema=VaeExperiment,
    resolve=_resolve,
    images=lambda experiment: trained_on(experiment.data, "train"),
    build=_build,
    finish=_finish,
    describe=_describe,
)
