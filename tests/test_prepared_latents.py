"""Latents prepared once: what is written, what training sees of them, what is refused."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import sha256_of_file
from sfumato.base.images import to_pil
from sfumato.config.schema import load_experiment
from sfumato.config.sections import DataConfig
from sfumato.data.latents import drawn, read_latents, write_latents
from sfumato.data.prepare import prepare
from sfumato.data.prepared import mapped_images
from sfumato.data.records import load_records
from sfumato.generation.loading import load
from sfumato.methods import codecs
from sfumato.methods.codecs import check_codec, codec_to_prepare
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.models.codec import LinearCodec, VaeCodec
from sfumato.models.vae import fit_vae_codec
from sfumato.training.records import read_records
from tests.ranks import Forks, arguments, ended
from tests.test_latent import stand_in_vae
from tests.test_training import StopAfter, equal_states, final_state, tiny

VAE_SETTINGS = ("codec.kind=vae", "codec.factor=2", "codec.channels=4", "data.resolution=16")


def settings(folder: Path, *more: str) -> tuple[str, ...]:
    own = (f"data.source={folder}", f"codec.vae={folder}/latents")
    return (*VAE_SETTINGS, *own, *more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of 80 digits, a folder for each class."""
    folder = tmp_path_factory.mktemp("pictures")
    records = load_records(
        DataConfig(source="digits", resolution=16, channels=1, caption=("{label}",)), "train"
    )
    for row, label in enumerate(records.labels[:80].tolist()):
        file = folder / str(label) / f"{row}.png"
        file.parent.mkdir(exist_ok=True)
        to_pil(records.images[row]).save(file)
    return folder


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stand-in") / "vae"
    stand_in_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["mode", pytest.param("sample", marks=pytest.mark.slow)])
def prepared(request, pictures: Path, stand_in: Path, tmp_path_factory) -> Path:
    """Digits with latents of a stand-in VAE; the folder is named by its posterior."""
    folder = tmp_path_factory.mktemp("prepared") / request.param
    prepare(DataConfig(source=str(pictures), resolution=16, channels=1), folder)
    data = DataConfig(source=str(folder), resolution=16, channels=1, caption=("{label}",))
    codec, made_from = codec_to_prepare(str(stand_in), data, posterior=request.param)
    write_latents(folder, codec, made_from=made_from)
    return folder


def test_latents_are_those_of_the_codec(prepared: Path) -> None:
    """Of every image and its mirror image, to the precision of bfloat16."""
    latents = read_latents(prepared)
    codec, images = latents.codec(), mapped_images(prepared)
    assert isinstance(codec, VaeCodec)
    assert latents.values.dtype == torch.bfloat16
    chosen = [0, 3, len(images) - 1]
    for side, pixels in enumerate((images[chosen], images[chosen].flip(3))):
        wanted = codec.posterior(pixels)
        for place in range(latents.values.shape[2]):
            stored = latents.values[chosen, side, place]
            assert torch.equal(stored, wanted[place].to(torch.bfloat16))
    assert latents.values.shape[2] == (2 if prepared.name == "sample" else 1)
    training = load_records(
        DataConfig(source=str(prepared), resolution=16, channels=1, caption=("{label}",)), "train"
    )
    x0 = latents.of(training.images)[:].float()[:, 0]
    spread = x0[:, 0].square()
    if prepared.name == "sample":
        spread = spread + x0[:, 1].square()
    assert torch.allclose(x0[:, 0].mean((0, 2, 3)), torch.zeros(4), atol=0.05)
    assert torch.allclose(spread.mean((0, 2, 3)).sqrt(), torch.ones(4), atol=0.05)


def test_what_a_step_draws() -> None:
    latents = torch.randn(3, 2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    latents = latents.to(torch.bfloat16)
    noise = torch.ones(3, 4, 2, 2)
    found = drawn(latents, torch.tensor([False, True, True]), 2 * noise)
    for row, side in enumerate((0, 1, 1)):
        mode, deviation = latents[row, side].float()
        assert torch.equal(found[row], mode + 2 * deviation)
    assert torch.equal(drawn(latents, None, None), latents[:, 0, 0].float())


@pytest.mark.slow
def test_training_never_encodes(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    """And sees what it would see if it did, to the precision of bfloat16."""
    more = (f"codec.posterior={prepared.name}", "training.mirrored=true")
    experiment = tiny(*settings(prepared, *more))
    run = prepare_run(experiment, tmp_path / "look", device="cpu")
    objective, context = run.objective, run.context()
    seen = objective.inputs(run.batches.at(0), context)[0]
    latents = read_latents(prepared)
    records = load_records(experiment.data, "train")
    images = records.images[run.batches.order.indices(0, run.batches.batch_size)]
    draws = objective.draws.at(context)
    flipped = torch.where(draws.flips[:, None, None, None], images.flip(3), images)
    wanted = latents.codec().encode(flipped, draws.posterior)
    assert torch.allclose(seen, wanted, rtol=2**-7, atol=0.02)

    def refuse(*_, **__) -> None:
        raise AssertionError("the VAE encodes")

    monkeypatch.setattr(AutoencoderKL, "encode", refuse)
    run_experiment(experiment, tmp_path / "run", device="cpu")
    with pytest.raises(SystemExit):
        run_experiment(experiment, tmp_path / "broken", hooks=[StopAfter(5)])
    run_experiment(experiment, tmp_path / "broken", device="cpu")
    assert equal_states(final_state(tmp_path / "broken"), final_state(tmp_path / "run"))
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "look", ignore_errors=True)
    assert load(tmp_path / "run", device="cpu").codec.to_dict() == latents.manifest.codec


def test_latents_that_do_not_fit_are_refused(
    prepared: Path, stand_in: Path, tmp_path: Path, refused
) -> None:
    other = tmp_path / "other"
    vae = stand_in_vae()
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 1.1
    vae.save_pretrained(other)
    with refused(ConfigError):  # another VAE
        run_experiment(tiny(*settings(prepared, f"codec.vae={other}")), tmp_path / "run")
    posterior = "mode" if prepared.name == "sample" else "sample"
    with refused(ConfigError):  # another posterior
        run_experiment(tiny(*settings(prepared, f"codec.posterior={posterior}")), tmp_path / "run")
    with refused(ConfigError):  # another number of channels
        run_experiment(tiny(*settings(prepared, "codec.channels=8")), tmp_path / "run")
    with refused(ConfigError):  # another kind
        linear = tiny(*VAE_SETTINGS, f"data.source={prepared}", "codec.kind=linear")
        run_experiment(linear, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    copied = tmp_path / "copied"
    shutil.copytree(prepared, copied)
    file = copied / "latents" / "latents.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with refused(DamagedDataError):
        read_latents(copied)
    (copied / "prepared.json").write_text((copied / "prepared.json").read_text() + " ")
    with refused(InputError):
        read_latents(copied)


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_recorded(
    prepared: Path, stand_in: Path, tmp_path: Path, refused, monkeypatch
) -> None:
    """Latents exactly if it was trained on them, whatever lies there now."""
    folder, away = tmp_path / "prepared", tmp_path / "away"
    shutil.copytree(prepared, folder)
    latents = folder / "latents"
    own = (f"data.source={folder}", f"codec.vae={stand_in}", f"codec.posterior={prepared.name}")
    experiment = tiny(*VAE_SETTINGS, *own)

    def interrupted(name: str) -> Path:
        with pytest.raises(SystemExit):
            run_experiment(experiment, tmp_path / name, hooks=[StopAfter(5)])
        return tmp_path / name

    with monkeypatch.context() as patched:
        reads = []
        patched.setattr(codecs, "read_latents", lambda at: reads.append(at) or read_latents(at))
        with_latents = interrupted("with")
    assert reads == [folder]  # a read checks the whole file
    assert prepare_run(experiment, with_latents).notes["latents"] == sha256_of_file(
        latents / "latents.json"
    )
    latents.rename(away)
    with refused(ConfigError):  # gone
        run_experiment(experiment, with_latents)
    without = interrupted("without")
    whole = run_experiment(experiment, tmp_path / "whole")
    assert whole.notes["latents"] == ""
    shutil.copytree(away, latents)
    about = json.loads((latents / "latents.json").read_text())
    (latents / "latents.json").write_text(json.dumps(about) + " ")
    with refused(ConfigError):  # others
        run_experiment(experiment, with_latents)
    run_experiment(experiment, without)
    assert equal_states(final_state(without), final_state(tmp_path / "whole"))


def test_latents_that_are_not_finite_are_refused(pictures: Path, tmp_path: Path, refused) -> None:
    prepare(DataConfig(source=str(pictures), resolution=16, channels=1), tmp_path / "out")
    vae = stand_in_vae()
    with torch.no_grad():
        vae.encoder.conv_out.bias[1] = float("nan")
    images = mapped_images(tmp_path / "out")[:50]
    with refused(DamagedDataError):
        write_latents(tmp_path / "out", VaeCodec(vae))
    assert not (tmp_path / "out" / "latents").exists()
    with refused(DamagedDataError):
        fit_vae_codec(vae, images.split(50), samples=False)


def test_latents_of_principal_components(
    pictures: Path, tmp_path: Path, monkeypatch, refused
) -> None:
    """Of a run with codec.kind=linear: another run trains on the same numbers."""
    folder = tmp_path / "prepared"
    prepare(DataConfig(source=str(pictures), resolution=16, channels=1), folder)
    linear = ("codec.kind=linear", "codec.factor=2", "codec.channels=3", "data.resolution=16")
    settings = (*linear, f"data.source={folder}", "training.images=32")
    run_experiment(tiny(*settings), tmp_path / "first", device="cpu")
    data = tiny(*settings).data
    codec, made_from = codec_to_prepare(str(tmp_path / "first"), data)
    write_latents(folder, codec, made_from=made_from)
    monkeypatch.setattr(LinearCodec, "encode", None)
    run_experiment(tiny(*settings), tmp_path / "second", device="cpu")
    assert load(tmp_path / "second", device="cpu").codec == codec
    with refused(ConfigError):
        run_experiment(tiny(*settings, "codec.channels=2"), tmp_path / "other")


@pytest.mark.slow
def test_two_ranks_train_on_principal_components_and_end(
    pictures: Path, tmp_path: Path, forks: Forks, sfumato
) -> None:
    """With the numbers of one process."""
    linear = ("codec.kind=linear", "codec.factor=2", "codec.channels=3", "data.resolution=16")

    def given(name: str, source: Path, *more: str) -> list[str]:
        settings = (*linear, "data.channels=1", f"data.source={source}", *more)
        return arguments(tmp_path / name, *settings, preset="small")

    first = given("first", pictures, "training.images=16")
    assert ended([forks.command(first, tmp_path / "said")]) == [0]
    command = ("prepare", str(pictures), "prepared", "--resolution", "16", "--codec", "first")
    assert sfumato(*command, cwd=tmp_path).code == 0
    one = forks.command(given("one", tmp_path / "prepared"), tmp_path / "said-one")
    two = forks.launcher(given("two", tmp_path / "prepared"), tmp_path / "said-two")
    assert ended([one, two]) == [0, 0], (tmp_path / "said-two").read_text("utf-8")
    losses, expected = (
        [record["loss"] for record in read_records(tmp_path / name / "metrics.jsonl")]
        for name in ("two", "one")
    )
    assert losses == pytest.approx(expected, rel=1e-5)
    assert load(tmp_path / "two", device="cpu").codec == load(tmp_path / "one", device="cpu").codec


def test_prepare_codec(sfumato, pictures: Path, stand_in: Path, tmp_path: Path, refused) -> None:
    """The command, again, and with a run on pixels."""
    out = "the out"
    command = ("prepare", str(pictures), out, "--resolution", "16", "--codec", str(stand_in))
    made = sfumato(*command, cwd=tmp_path)
    assert made.code == 0, made.err
    assert "8x8 latents of 4 numbers" in made.out
    line = made.out.split("Train on these: ")[1].splitlines()[0]
    assert shlex.split(line)[:5] == ["sfumato", "train", "PRESET", "--data", out]
    assert shlex.split(line)[5::2] == ["--set"] * 5
    assert shlex.split(line)[6::2] == [
        "data.resolution=16",
        "codec.kind=vae",
        "codec.factor=2",
        "codec.channels=4",
        f"codec.vae={out}/latents",
    ]
    written = (tmp_path / out / "latents" / "latents.npy").stat().st_mtime_ns
    again = sfumato(*command, cwd=tmp_path)
    assert again.code == 0, again.err
    assert (tmp_path / out / "latents" / "latents.npy").stat().st_mtime_ns == written
    other = sfumato(*command, "--posterior", "sample", cwd=tmp_path)
    assert (other.code, "latents of another codec" in other.err) == (2, True)
    about = json.loads((tmp_path / out / "latents" / "latents.json").read_text())
    assert about["shape"][1:] == [2, 1, 4, 8, 8]
    with refused(InputError):
        codec_to_prepare(
            str(Path(__file__).parent / "data" / "small-run"),
            DataConfig(source=str(pictures), caption=("{label}",)),
        )


def test_prepare_codec_with_damage_and_images_that_are_left_out(
    sfumato, pictures: Path, stand_in: Path, tmp_path: Path
) -> None:
    """As training, the codec is fitted without them."""
    shutil.copytree(pictures, tmp_path / "pictures")
    for row in range(5):
        (tmp_path / "pictures" / "0" / f"damaged-{row}.png").write_bytes(f"damaged {row}".encode())
    command = ("--resolution", "16", "--codec", str(stand_in), "--set", "data.max_damaged=0.2")
    codecs = []
    for out, more in (("all", ()), ("some", ("--set", "data.left_out=A photo of a 3"))):
        made = sfumato("prepare", "pictures", out, *command, *more, cwd=tmp_path)
        assert made.code == 0, made.err
        assert made.out.count("--set data.max_damaged=0.2") == 2
        codecs.append(read_latents(tmp_path / out).manifest.codec)
    assert codecs[0] != codecs[1]


def test_codecs_that_do_not_fit_are_refused(pictures: Path, tmp_path: Path, refused) -> None:
    """Before anything is encoded: of other channels, or with a factor that does not divide."""
    out = tmp_path / "prepared"
    prepare(DataConfig(source=str(pictures), resolution=15, channels=1), out)
    data = DataConfig(source=str(out), resolution=15, channels=1, caption=("{label}",))
    for channels, posterior in ((3, "mode"), (1, "mode"), (1, "sample")):
        stand_in_vae(channels=channels).save_pretrained(tmp_path / "vae")
        with refused(InputError):
            codec_to_prepare(str(tmp_path / "vae"), data, posterior=posterior)
        with refused(InputError):
            write_latents(
                out, VaeCodec(stand_in_vae(channels=channels), samples=posterior == "sample")
            )
    numbers = (1.0,) * 12
    codec = LinearCodec(
        factor=2, image_channels=3, basis=(numbers,), mean=numbers, deviation=(1.0,)
    )
    with refused(InputError):
        write_latents(out, codec)
    assert not (out / "latents").exists()


def test_a_posterior_that_is_not_followed_is_refused(
    prepared: Path, pictures: Path, sfumato, tmp_path: Path, refused
) -> None:
    """With a run, whose own setting holds, and without --codec."""
    own, other = prepared.name, "mode" if prepared.name == "sample" else "sample"
    images = ("training.images=16", f"codec.posterior={own}")
    run_experiment(tiny(*settings(prepared, *images)), tmp_path / "run", device="cpu")
    linear = ("codec.kind=linear", "codec.factor=2", "codec.channels=3", "data.resolution=16")
    run_experiment(
        tiny(*linear, f"data.source={pictures}", "training.images=16"), tmp_path / "linear"
    )
    data = DataConfig(source=str(prepared), resolution=16, channels=1, caption=("{label}",))
    with refused(InputError):
        codec_to_prepare(str(tmp_path / "run"), data, posterior=other)
    assert codec_to_prepare(str(tmp_path / "run"), data, posterior=own)[0].samples == (
        own == "sample"
    )
    with refused(InputError):
        codec_to_prepare(str(tmp_path / "linear"), data, posterior="sample")
    alone = sfumato("prepare", str(pictures), "out", "--posterior", own, cwd=tmp_path)
    assert (alone.code, "without --codec none are" in alone.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["can", "nowhere"])
def test_a_codec_that_is_none_is_refused_before_an_image_is_decoded(
    name: str, refused, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nowhere").mkdir()
    Path("can").mkdir()
    Path("can/experiment.yaml").write_text(load_experiment("can", ["data.source=digits"]).to_yaml())
    with refused(InputError):
        check_codec(name)
