"""An exported folder: what is in it, and that it samples the same images without sfumato."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfumato.base.errors import InputError
from sfumato.config.schema import load_experiment
from sfumato.diffusion.solvers.registry import SAMPLERS
from sfumato.generation import export as standalone
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.pipeline import TextToImagePipeline
from sfumato.methods.registry import run_experiment

PROMPTS = [f"A handwritten digit {digit}" for digit in range(3)]
SEEDS = [10, 11, 12]
SCHEDULERS = SAMPLERS["variance_preserving"]

CASES = [
    {"sampler": "DPMSolver++", "scale": 1.0, "form": "cfg"},
    {"sampler": "DPMSolver++", "scale": 3.0, "form": "cfg"},
    {"sampler": "EulerAncestral", "scale": 1.0, "form": "cfg"},
    {"sampler": "EulerAncestral", "scale": 3.0, "form": "cfg"},
    {"sampler": "DDPM", "scale": 5.0, "form": "apg:eta=0.25,norm=4"},
]

WITHOUT_SFUMATO = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sfumato", "pydantic"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import diffusers
import numpy as np
from safetensors.torch import save_file

folder, out = sys.argv[1:3]
prompts, seeds, cases = json.loads(sys.argv[3])
pipe = diffusers.DiffusionPipeline.from_pretrained(
    folder, custom_pipeline=folder, trust_remote_code=True
)
images = {}
for index, case in enumerate(cases):
    if case["class"]:
        pipe.scheduler = getattr(diffusers, case["class"]).from_config(pipe.scheduler.config)
    start = case.get("start", {})
    pictures = {name: np.array(start[name], np.uint8) for name in start if "image" in name}
    images[str(index)] = pipe(
        prompts, seeds=seeds, guidance_scale=case["scale"], guidance=case["form"],
        num_inference_steps=5, output_type="uint8", **{**start, **pictures},
    ).images
save_file(images, out)
"""


def run_python(code: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """Standard output of a Python process that cannot see our sources or the user's caches."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(small_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "digits"
    small_model.export(folder)
    return folder


@pytest.fixture
def pipe(exported: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(exported, low_cpu_mem_usage=False)


def images_of(pipe, **arguments) -> torch.Tensor:
    """uint8 (3, 1, 8, 8)."""
    arguments = {"seeds": SEEDS, "num_inference_steps": 5, **arguments}
    return pipe(PROMPTS, output_type="uint8", **arguments).images


# Without sfumato ----------------------------------------------------------------------------------


def without_sfumato(folder: Path, cases: list[dict], cwd: Path) -> list[torch.Tensor]:
    """Images of each case by diffusers alone, with sfumato and pydantic refused; yaml is not,
    because diffusers itself imports it."""
    out = cwd / "images.safetensors"
    wanted = json.dumps([PROMPTS, SEEDS, cases])
    run_python(WITHOUT_SFUMATO, str(folder), str(out), wanted, cwd=cwd, PYTHONPATH="")
    images = load_file(out)
    return [images[str(index)] for index in range(len(cases))]


def test_diffusers_alone_samples_the_same_images(exported: Path, tmp_path: Path) -> None:
    cases = [{**case, "class": SCHEDULERS[case["sampler"]].scheduler_class} for case in CASES]
    theirs = without_sfumato(exported, cases, tmp_path)
    model = load(exported, device="cpu")
    for case, images in zip(CASES, theirs, strict=True):
        ours = model.sample(
            PROMPTS,
            SEEDS,
            sampler=case["sampler"],
            guidance=case["scale"],
            form=case["form"],
            steps=5,
        )
        assert torch.equal(images, ours.tensor), case
    assert len({images.numpy().tobytes() for images in theirs}) == len(CASES)


@pytest.mark.slow
def test_diffusers_alone_starts_from_an_image(exported: Path, tmp_path: Path) -> None:
    """With a mask too; of another size than the model's, as a file would be."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    mask = np.zeros_like(image)
    mask[8:] = 255
    starts = [
        {"image": image.tolist(), "strength": 0.5},
        {"image": image.tolist(), "mask_image": mask.tolist()},
        {"image": image.tolist(), "mask_image": mask.tolist(), "strength": 0.7},
    ]
    cases = [{"class": "", "scale": 2.0, "form": "cfg", "start": start} for start in starts]
    theirs = without_sfumato(exported, cases, tmp_path)
    model = load(exported, device="cpu")
    for start, images in zip(starts, theirs, strict=True):
        own = {"init_image": image, "mask": mask if "mask_image" in start else None}
        ours = model.sample(
            PROMPTS, SEEDS, **own, strength=start.get("strength"), guidance=2.0, steps=5
        )
        assert torch.equal(images, ours.tensor), start


@pytest.fixture(scope="module", params=["Euler", "Heun"])
def flow_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a rectified flow over 64 images; it exports itself."""
    settings = [
        "data.resolution=8",
        "model.block_out_channels=[8]",
        "model.levels=[plain]",
        "model.norm_num_groups=4",
        "diffusion.process=rectified_flow",
        "training.images=64",
        f"sampling.sampler={request.param}",
        "sampling.steps=4",
    ]
    folder = tmp_path_factory.mktemp("flow") / request.param
    run_experiment(load_experiment("digits", settings), folder, device="cpu")
    return folder


@pytest.mark.slow
def test_diffusers_alone_samples_a_rectified_flow(flow_run: Path, tmp_path: Path, refused) -> None:
    cases = [{"class": "", "scale": scale, "form": "cfg"} for scale in (0.0, 1.0, 3.0)]
    theirs = without_sfumato(flow_run / "model", cases, tmp_path)
    run, exported = load(flow_run, device="cpu"), load(flow_run / "model", device="cpu")
    assert (run.process, run.sampling) == (exported.process, exported.sampling)
    assert not (flow_run / "model" / "scheduler").exists()
    for case, images in zip(cases, theirs, strict=True):
        for model in (run, exported):
            ours = model.sample(PROMPTS, SEEDS, guidance=case["scale"], steps=5)
            assert torch.equal(images, ours.tensor), case
    assert ours.settings[0]["sampler"] == flow_run.name
    assert ours.settings[0]["first_t"] == 1
    with refused(InputError):
        run.with_(sampler="DDIM")


def test_the_file_imports_nothing_but_libraries_of_models(exported: Path) -> None:
    tree = ast.parse((exported / "pipeline.py").read_text("utf-8"))
    modules = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    known = {"torch", "diffusers", "transformers", "numpy", "PIL"}
    assert not modules - known - sys.stdlib_module_names
    assert not {"Section", "PromptBank"} & {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
    }


@pytest.mark.slow
def test_the_same_bytes_on_every_export(exported: Path, small_run: Path, tmp_path: Path) -> None:
    """Also of another process, with another order of sets; and in `model/` of the run."""
    file = (exported / "pipeline.py").read_bytes()
    assert (small_run / "model" / "pipeline.py").read_bytes() == file
    again = load(exported, device="cpu")
    again.sample(PROMPTS, SEEDS, steps=1)  # leaves no trace
    again.export(tmp_path / "again")
    for pattern in ("pipeline.py", "*/*.safetensors", "tokenizer/*"):
        for path in exported.glob(pattern):
            same = tmp_path / "again" / path.relative_to(exported)
            assert same.read_bytes() == path.read_bytes(), path
    code = (
        "from sfumato.generation.export import standalone_source;print(standalone_source(), end='')"
    )
    source = str(Path(standalone.__file__).parents[2])
    printed = run_python(code, cwd=tmp_path, PYTHONPATH=source, PYTHONHASHSEED="7")
    assert printed.encode() == file


def test_no_pickle(exported: Path) -> None:
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".py"}
    assert [path.name for path in files if path.suffix == ".py"] == ["pipeline.py"]


def test_a_name_with_two_meanings_is_refused(monkeypatch, refused) -> None:
    monkeypatch.setattr(standalone, "RUNTIME", (*standalone.RUNTIME, "base.errors"))
    standalone.standalone_source()  # the same module defines it
    monkeypatch.setattr(standalone, "RUNTIME", ("diffusion.guidance", "evaluation.TWIN"))
    real = standalone.files

    class Twin:
        def __truediv__(self, name: str):
            if "TWIN" not in name:
                return real("sfumato") / name
            return type("File", (), {"read_text": lambda *_: '"""."""\nCONVENTION = 1\n'})()

    monkeypatch.setattr(standalone, "files", lambda package: Twin())
    with refused(AssertionError):
        standalone.standalone_source()


# The command --------------------------------------------------------------------------------------


def test_export_writes_a_folder_and_says_how_to_open_it(
    sfumato, exported: Path, small_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    result = sfumato("export", str(small_run), "--out", str(folder))
    assert result.code == 0, result.err
    assert f'TextToImagePipeline.from_pretrained("{folder}")' in result.out
    assert f'custom_pipeline="{folder}", trust_remote_code=True' in result.out
    names = {path.relative_to(exported) for path in exported.rglob("*") if path.is_file()}
    assert names == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for name in names:
        assert (folder / name).read_bytes() == (exported / name).read_bytes(), name


def test_export_sets_what_the_folder_samples_with(sfumato, exported: Path, tmp_path: Path) -> None:
    """From a pipeline folder, into an empty one."""
    changes = ["-w", "5", "--guidance-form", "rescaled", "--steps", "4", "--sampler", "DDIM"]
    result = sfumato("export", str(exported), "--out", str(tmp_path), *changes)
    assert result.code == 0, result.err
    again = TextToImagePipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    sampling = again.config["sampling"]
    assert sampling["guidance_scale"] == 5
    assert sampling["guidance"] == "rescaled:phi=0.7"
    assert sampling["steps"] == 4
    assert sampling["sampler"] == "DDIM"
    assert type(again.scheduler) is diffusers.DDIMScheduler
    assert again.config["provenance"]["images_seen"] == 64000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "--out", "filled"], ["filled exists", "new folder"]),
        (["MODEL", "--out", "filled/file"], ["filled/file is a file"]),
        (["filled", "--out", "new"], ["neither a run nor a pipeline", "sfumato train"]),
        (["no-such-run", "--out", "new"], ["does not exist"]),
        (["MODEL", "--out", "new", "--steps", "0"], ["--steps"]),
        (["MODEL", "--out", "new", "--sampler", "dim"], ["No sampler named 'dim'"]),
        (["MODEL"], ["Missing option"]),
    ],
)
def test_what_export_refuses(sfumato, exported: Path, arguments, words, tmp_path: Path) -> None:
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "file").write_text("mine")
    arguments = [argument.replace("MODEL", str(exported)) for argument in arguments]
    result = sfumato("export", *arguments, cwd=tmp_path)
    assert result.code == 2, result.out
    for word in words:
        assert word in result.err
    assert (tmp_path / "filled" / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


# The habits of a diffusers pipeline ---------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_scheduler_of_diffusers_can_be_swapped_in(name: str, exported: Path, pipe) -> None:
    """From any other's configuration it is the sampler of that name, with the settings that are
    not the defaults of its class."""
    model = load(exported, device="cpu")
    expected = model.sample(PROMPTS, SEEDS, sampler=name, steps=5).tensor
    scheduler_class = getattr(diffusers, SCHEDULERS[name].scheduler_class)
    wanted = {
        "PNDM": {"skip_prk_steps": True},
        "DPMSolver++SDE": {"algorithm_type": "sde-dpmsolver++"},
    }.get(name, {})
    for before in ("UniPC", "Euler", "Heun"):
        other = getattr(diffusers, SCHEDULERS[before].scheduler_class)
        pipe.scheduler = other.from_config(pipe.scheduler.config)
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **wanted)
        assert torch.equal(images_of(pipe), expected)
        assert pipe.model.sampling.sampler == name


def test_schedulers_that_are_refused(pipe, refused) -> None:
    pipe.scheduler = diffusers.DEISMultistepScheduler.from_config(pipe.scheduler.config)
    with refused(InputError):
        images_of(pipe)
    pipe.scheduler = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    with refused(InputError):
        images_of(pipe)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "sample"},
        {"beta_schedule": "linear"},
        {"num_train_timesteps": 500},
        {"rescale_betas_zero_snr": True},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_scheduler_of_another_process_is_refused(pipe, wrong: dict, refused) -> None:
    """It would sample noise: the network predicts v on the squared cosine."""
    config = diffusers.DDIMScheduler.from_config(pipe.scheduler.config).config
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config, **wrong)
    for use in (images_of, lambda pipe: pipe.model):
        with refused(InputError):
            use(pipe)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
    assert images_of(pipe).shape == (3, 1, 8, 8)


def test_generators_are_as_good_as_seeds(pipe) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    assert torch.equal(images_of(pipe, seeds=None, generator=generators), images_of(pipe))
    one = torch.Generator().manual_seed(SEEDS[0])
    alone = pipe(PROMPTS[0], generator=one, num_inference_steps=5, output_type="uint8").images
    assert torch.equal(alone, images_of(pipe)[:1])
    assert not torch.equal(images_of(pipe, seeds=None), images_of(pipe, seeds=None))


def test_what_generators_are_refused(pipe, refused) -> None:
    generator = torch.Generator().manual_seed(0)
    with refused(InputError):
        images_of(pipe, seeds=None, generator=[generator] * 2)
    on_a_gpu = [SimpleNamespace(device=torch.device("cuda"))] * 3
    with refused(InputError):
        images_of(pipe, seeds=None, generator=on_a_gpu)
    with refused(InputError):
        images_of(pipe, generator=generator)


def test_the_negative_prompt_is_what_guidance_leads_away_from(pipe) -> None:
    """Away from the caption itself is no guidance; away from the empty one is the default."""
    with_itself = pipe(
        PROMPTS[0], negative_prompt=PROMPTS[0], guidance_scale=4, seeds=[3], output_type="pt"
    ).images
    unguided = pipe(PROMPTS[0], guidance_scale=1, seeds=[3], output_type="pt").images
    torch.testing.assert_close(with_itself, unguided, rtol=0, atol=1e-3)
    assert torch.equal(images_of(pipe, negative_prompt=""), images_of(pipe))
    assert not torch.equal(images_of(pipe, negative_prompt=PROMPTS[0]), images_of(pipe))


def test_output_types_are_one_picture(pipe, refused) -> None:
    images = images_of(pipe)
    by_type = {
        kind: pipe(PROMPTS, seeds=SEEDS, num_inference_steps=5, output_type=kind).images
        for kind in ("pil", "pt", "np")
    }
    assert [image.tobytes() for image in by_type["pil"]] == [i.numpy().tobytes() for i in images]
    assert torch.equal((by_type["pt"] * 255).round().to(torch.uint8), images)
    assert by_type["np"].shape == (3, 8, 8, 1)
    assert torch.equal(torch.from_numpy(by_type["np"]).permute(0, 3, 1, 2), by_type["pt"])
    (same,) = pipe(
        PROMPTS, seeds=SEEDS, num_inference_steps=5, output_type="uint8", return_dict=False
    )
    assert torch.equal(same, images)
    with refused(InputError):
        pipe(PROMPTS[0], output_type="gif")


def test_a_callback_follows_the_steps(pipe) -> None:
    told = []
    last = pipe(
        PROMPTS,
        seeds=SEEDS,
        num_inference_steps=5,
        output_type="pt",
        callback_on_step_end=lambda *arguments: told.append(arguments),
    ).images
    assert [(owner, index, t) for owner, index, t, _ in told] == [
        (pipe, index, t) for index, t in enumerate([999, 799, 599, 399, 199])
    ]
    assert torch.equal((told[-1][3]["latents"].clamp(-1, 1) + 1) / 2, last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_same_picture_coarser(dtype, exported: Path, pipe) -> None:
    """Within 4 of 255 on average; and what was encoded before does not matter."""
    full = images_of(pipe)
    half = images_of(pipe.to("cpu", dtype))
    assert float((half.double() - full.double()).abs().mean()) < 4
    fresh = TextToImagePipeline.from_pretrained(exported, torch_dtype=dtype)
    assert fresh.unet.dtype == fresh.text_encoder.dtype == dtype
    assert torch.equal(images_of(fresh), half)
