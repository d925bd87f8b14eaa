"""Runs that begin with a trained model: whole or by LoRA, exactly resumed, opened by diffusers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.config.finetuning import LoraConfig
from sfumato.config.overrides import flattened
from sfumato.config.schema import DiffusionExperiment, load_experiment
from sfumato.generation.loading import load
from sfumato.generation.origin import load_from, sections_of
from sfumato.generation.runs import experiment_of_run
from sfumato.methods.registry import run_experiment
from sfumato.models.lora import ADAPTER_FILE, AdapterPart, adapter_state, add_adapter, merge_adapter
from sfumato.models.unet import build_unet, unet_config_of
from sfumato.training.hooks import BaseHook
from sfumato.training.loop import Run
from sfumato.training.state import load_state
from tests.ranks import ended

SHORT = [
    "data.source=digits",
    "training.images=96",
    "training.batch_size=16",
    "training.log_every_images=16",
    "training.checkpoint_every_images=48",
    "training.sample_every_images=96",
    "training.optimizer.lr=0.01",
    "training.optimizer.warmup_images=0",
    "sampling.steps=2",
]
SMALL_NETWORK = ["model.block_out_channels=[16,32]", "model.levels=[plain,attention]"]
LORA = ["training.lora.rank=2", "training.lora.alpha=3"]


def begin(origin: Path | str, out: Path, *more: str, hooks: tuple = ()) -> Run:
    experiment = load_from(str(origin), "digits", [*SHORT, *more], out)
    return run_experiment(experiment, out, device="cpu", hooks=hooks)


class StopAt(BaseHook):
    def __init__(self, images: int) -> None:
        self.images = images

    def after_step(self, run: Run, metrics) -> None:
        run.stop_requested |= run.images_seen >= self.images


@pytest.fixture(scope="module")
def lora_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    begin(small_run, folder, *LORA)
    return folder


@pytest.fixture(scope="module")
def whole_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    begin(small_run, folder)
    return folder


def cannot_open() -> None:
    """As on another machine: the model that the run begins with cannot be opened here."""
    from sfumato.generation import origin_weights
    from sfumato.methods import diffusion

    def absent(path: str) -> None:
        raise AssertionError(f"{path} was opened")

    origin_weights.open_origin = diffusion.open_origin = absent


@pytest.mark.slow
def test_rank_0_alone_opens_the_origin(forks, small_run: Path, tmp_path: Path) -> None:
    changes = [part for one in [*SHORT, *LORA, "training.images=16"] for part in ("--set", one)]
    given = ["train", "digits", "--from", str(small_run), "--out", str(tmp_path / "run")]
    given += ["--device", "cpu", *changes]
    codes = ended(forks.ranks(given, tmp_path / "out", size=2, before={1: cannot_open}))
    assert codes == [0, 0], (tmp_path / "out-1").read_text("utf-8")


# What is taken over -------------------------------------------------------------------------------


def test_every_kind_of_model_gives_the_same_sections(small_run: Path, tmp_path: Path) -> None:
    sections = sections_of(str(small_run))
    recorded = experiment_of_run(small_run)
    assert (
        DiffusionExperiment.model_validate(
            recorded.model_dump(mode="json") | {"model": sections["model"]}
        )
        == recorded
    )
    exported = sections_of(str(small_run / "model"))
    assert exported == json.loads(json.dumps(sections))


def test_the_bundled_model(tmp_path: Path) -> None:
    experiment = load_from("bundled:mnist", "small", ["data.source=digits"])
    assert (experiment.data.resolution, experiment.data.channels) == (28, 1)
    assert experiment.text.max_tokens == 24
    model = load("bundled:mnist", device="cpu")
    network = build_unet(experiment.model, resolution=28, channels=1, seed=0)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in model.network.state_dict().items()
    }
    assert experiment.diffusion == model.process
    assert experiment.sampling == model.sampling


@pytest.mark.parametrize(
    "change", [[], ["model.head_channels=8"], ["model.levels=[attention,attention]"]]
)
def test_a_network_is_known_from_its_config(change: list[str]) -> None:
    config = load_experiment("digits", [*SMALL_NETWORK, *change]).model
    built = build_unet(config, resolution=16, channels=1, seed=0)
    found = unet_config_of(json.loads(built.to_json_string()), where="config.json")
    again = build_unet(found, resolution=16, channels=1, seed=0)
    assert json.loads(again.to_json_string()) == json.loads(built.to_json_string())


def test_another_network_is_refused(refused) -> None:
    built = build_unet(load_experiment("digits").model, resolution=16, channels=1, seed=0)
    config = {**built.config, "down_block_types": ["AttnDownBlock2D"]}
    with refused(InputError):
        unet_config_of(config, where="config.json")


@pytest.mark.parametrize(
    "settings",
    [
        ["data.resolution=16"],
        ["diffusion.process=rectified_flow", "sampling.sampler=Heun"],
        ["model.dropout=0.1", "text.max_tokens=9", "data.value_range=[0,1]"],
    ],
)
def test_settings_that_contradict_the_origin_are_named(
    refused, small_run: Path, settings: list[str]
) -> None:
    with refused(ConfigError):
        load_from(str(small_run), "digits", settings)


def test_settings_that_agree_and_other_settings_are_taken(small_run: Path) -> None:
    experiment = load_from(
        str(small_run), "digits", ["data.resolution=8", "sampling.steps=3", "training.images=9"]
    )
    assert (experiment.sampling.steps, experiment.training.images) == (3, 9)
    assert experiment.origin is not None
    assert experiment.origin.model == str(small_run)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("classifier", []),
        ("digits", ["training.lora.rank=0"]),
        ("digits", ["training.lora.rank=2", "training.sharding=full"]),
        ("digits", ["training.lora.targets=[]"]),
    ],
)
def test_what_cannot_begin_with_a_model(refused, small_run, preset: str, settings: list) -> None:
    with refused(ConfigError):
        load_from(str(small_run), preset, settings)


def test_an_adapter_needs_a_model(refused) -> None:
    with refused(ConfigError):
        load_experiment("digits", ["training.lora.rank=2"])


def test_a_model_that_is_not_there_and_a_contradiction_are_answered_without_torch(
    small_run: Path, tmp_path: Path
) -> None:
    script = f"""
import sys
from sfumato.cli import main
for more in (["bundled:mnits"], ["absent"], [{str(small_run)!r}, "--resolution", "16"]):
    sys.argv = ["sfumato", "train", "digits", "--from", *more]
    try:
        main()
    except SystemExit as leaving:
        print(leaving.code, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["2", "False"] * 3, done.stderr
    assert "data.resolution is 8 there, 16 here" in done.stderr


# Training -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_step_of_size_the_model_stays(small_run: Path, tmp_path: Path) -> None:
    """A rate of almost nothing: the run's model is its origin, whole and by LoRA."""
    origin = load(small_run, device="cpu")
    for name, more in (("whole", []), ("lora", LORA)):
        begin(small_run, tmp_path / name, *more, "training.optimizer.lr=1e-30")
        found = load(tmp_path / name, device="cpu").network.state_dict()
        for key, value in origin.network.state_dict().items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-7)


def test_the_origin_is_recorded(small_run: Path, lora_run: Path, whole_run: Path) -> None:
    origin = load(small_run, device="cpu").provenance["weights_sha256"]
    for run in (lora_run, whole_run):
        recorded = experiment_of_run(run).origin
        assert recorded is not None
        assert (recorded.model, recorded.weights_sha256) == (str(small_run), origin)
        for place in (run, run / "model"):
            provenance = load(place, device="cpu").provenance
            assert provenance["origin_weights_sha256"] == origin
            assert provenance["weights_sha256"] != origin


def test_only_the_adapter_is_trained_and_saved(small_run: Path, lora_run: Path) -> None:
    folder = lora_run / "checkpoints" / "images-000000096"
    assert {f.name for f in folder.iterdir()} == {
        *("adapter.safetensors", "average.safetensors", "optimizer.safetensors", "state.json")
    }
    adapter, average = (load_state(folder / f"{p}.safetensors") for p in ("adapter", "average"))
    assert set(adapter) == set(average)
    assert all(".lora_" in name for name in adapter)
    assert all(value.shape[0] == 2 for name, value in adapter.items() if "lora_A" in name)
    assert any(bool((adapter[name] != average[name]).any()) for name in adapter)
    moments = load_state(folder / "optimizer.safetensors")
    assert len(moments["state"]) == len(adapter)
    base = load(small_run, device="cpu").network.state_dict()
    tuned = load(lora_run, device="cpu").network.state_dict()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {name.replace(".lora_A", "") for name in adapter if "lora_A" in name}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], LORA])
def test_a_resumed_run_is_the_unbroken_one(
    small_run: Path, lora_run: Path, whole_run: Path, tmp_path: Path, more: list[str]
) -> None:
    """Byte for byte; the second part without the model that it began with."""
    whole = lora_run if more else whole_run
    origin = Path(shutil.copytree(small_run, tmp_path / "origin"))
    run = tmp_path / "run"
    assert not begin(origin, run, *more, hooks=(StopAt(32),)).finished
    shutil.rmtree(origin)
    assert begin(origin, run, *more).finished
    for file in ("metrics.jsonl", "model/unet/diffusion_pytorch_model.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    last = "checkpoints/images-000000096"
    for file in sorted((whole / last).glob("*.safetensors")):
        assert (run / last / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(small_run: Path, lora_run: Path, tmp_path) -> None:
    settings = [part for one in (*SHORT, *LORA) for part in ("--set", one)]
    command = ["-m", "sfumato", "train", "digits", "--from", str(small_run), *settings]
    command += ["--processes", "2", "--device", "cpu", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = "checkpoints/images-000000096/average.safetensors"
    one, two = load_state(lora_run / last), load_state(tmp_path / "two" / last)
    assert set(one) == set(two)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_another_origin_or_adapter_is_another_experiment(
    refused, small_run: Path, lora_run: Path, whole_run: Path
) -> None:
    with refused(ConfigError):
        begin(small_run, lora_run, "training.lora.rank=3")
    with refused(ConfigError):
        begin(whole_run, lora_run, *LORA)


def test_an_origin_with_other_weights_is_refused(refused, small_run: Path, tmp_path: Path) -> None:
    wrong = f"origin.weights_sha256={'f' * 64}"
    with refused(ConfigError):
        begin(small_run, tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


def test_a_damaged_copy_is_refused(refused, lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    file = run / "origin" / "unet.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with refused(DamagedDataError):
        load(run, device="cpu")


def test_python_takes_an_origin(small_run: Path, whole_run: Path, tmp_path: Path) -> None:
    import sfumato

    settings: dict = {}
    for one in SHORT[1:]:
        path, _, value = one.partition("=")
        *parents, last = path.split(".")
        inner = settings
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = float(value) if "." in value else int(value)
    run = sfumato.train(
        *("digits",),
        data="digits",
        origin=small_run,
        out=tmp_path / "run",
        device="cpu",
        progress=False,
        **settings,
    )
    file = "checkpoints/images-000000096/average.safetensors"
    assert (run.folder / file).read_bytes() == (whole_run / file).read_bytes()


# The adapter --------------------------------------------------------------------------------------


def adapted(config: LoraConfig, *, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A small U-Net with an adapter that changes it, and the same without."""
    model = load_experiment("digits", SMALL_NETWORK).model
    unet = build_unet(model, resolution=8, channels=1, seed=0)
    add_adapter(unet, config, seed=seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in adapter_state(unet).items():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return unet, build_unet(model, resolution=8, channels=1, seed=0)


def test_merging_equals_peft() -> None:
    config = LoraConfig(rank=3, alpha=4.5)
    unet, plain = adapted(config)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 512)
    with torch.no_grad():
        expected = unet(*inputs).sample
        before = plain(*inputs).sample
        merge_adapter(plain, adapter_state(unet), scale=config.scale)
        torch.testing.assert_close(plain(*inputs).sample, expected, rtol=1e-5, atol=1e-5)
    assert float((before - expected).abs().max()) > 0.01


def test_an_adapter_is_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (
        adapter_state(adapted(LoraConfig(), seed=seed)[0]) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("target", ["to_x", "norm1"])
def test_targets_that_are_no_layers_are_refused(refused, target: str) -> None:
    with refused(ConfigError):
        adapted(LoraConfig(targets=("to_q", target)))


def test_the_state_of_another_adapter_is_refused(refused) -> None:
    state = adapter_state(adapted(LoraConfig(rank=2))[0])
    with refused(ConfigError):
        AdapterPart(adapted(LoraConfig(rank=3))[0]).load_state_dict(state)
    with refused(ConfigError):
        AdapterPart(adapted(LoraConfig(rank=2, targets=("to_q",)))[0]).load_state_dict(state)


def test_without_peft_the_way_out_is_named(refused, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with refused(InputError):
        adapted(LoraConfig())


# diffusers ----------------------------------------------------------------------------------------


def drawn(pipeline) -> torch.Tensor:
    prompts = [f"A handwritten digit {label}" for label in (3, 7)]
    return pipeline(prompts, seeds=[0, 1], num_inference_steps=5, output_type="pt").images


@pytest.fixture
def opened() -> Callable:
    from diffusers import DiffusionPipeline

    def opened(folder: Path):
        return DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=str(folder), trust_remote_code=True, low_cpu_mem_usage=False
        )

    return opened


def test_merged_and_adapter_draw_the_same(small_run: Path, lora_run: Path, opened) -> None:
    merged = drawn(opened(lora_run / "model"))
    ours = load(lora_run, device="cpu")
    prompts = [f"A handwritten digit {label}" for label in (3, 7)]
    torch.testing.assert_close(
        merged, ours.codec.decode(ours.sample(prompts, [0, 1], steps=5).x0) / 255, atol=3e-3, rtol=0
    )
    origin = opened(small_run / "model")
    origin.register_to_config(sampling=opened(lora_run / "model").config["sampling"])
    before = drawn(origin)
    assert float((before - merged).abs().max()) > 0.01
    adapter = lora_run / "model" / "adapter"
    assert [file.name for file in adapter.iterdir()] == [ADAPTER_FILE]
    origin.unet.load_lora_adapter(adapter, weight_name=ADAPTER_FILE, prefix="unet")
    torch.testing.assert_close(drawn(origin), merged, atol=1e-5, rtol=0)
    origin.unet.unload_lora()
    torch.testing.assert_close(drawn(origin), before, atol=1e-5, rtol=0)


def test_a_stable_diffusion_loader_reads_the_adapter(small_run: Path, lora_run: Path) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    read = StableDiffusionLoraLoaderMixin.lora_state_dict
    state, _, metadata = read(lora_run / "model" / "adapter", return_lora_metadata=True)
    network = load(small_run, device="cpu").network
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(
        state, None, network, low_cpu_mem_usage=False, metadata=metadata
    )
    merged = load(lora_run, device="cpu").network
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 512)
    with torch.no_grad():
        torch.testing.assert_close(
            network(*inputs).sample, merged(*inputs).sample, atol=1e-5, rtol=1e-5
        )


def test_flattened_settings_have_dotted_names() -> None:
    assert flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2]}
