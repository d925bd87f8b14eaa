"""An exported folder: what is in it, and that it draws the same pictures without sfumato."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from sfumato.base.errors import InputError
from sfumato.diffusion.solvers.schedulers import SAMPLERS
from sfumato.generation import export as standalone
from sfumato.generation.model import ImageGenerator
from sfumato.generation.pipeline import TextToImagePipeline

PROMPTS = [f"A handwritten digit {digit}" for digit in range(3)]
SEEDS = [10, 11, 12]

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
from safetensors.torch import save_file

folder, out = sys.argv[1:3]
prompts, seeds, cases = json.loads(sys.argv[3])
pipe = diffusers.DiffusionPipeline.from_pretrained(
    folder, custom_pipeline=folder, trust_remote_code=True
)
images = {}
for index, case in enumerate(cases):
    pipe.scheduler = getattr(diffusers, case["class"]).from_config(pipe.scheduler.config)
    images[str(index)] = pipe(
        prompts, seeds=seeds, guidance_scale=case["scale"], guidance=case["form"],
        num_inference_steps=5, output_type="uint8",
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
def exported(small_run: Path, sfumato, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sfumato export` writes of the small run."""
    folder = tmp_path_factory.mktemp("exports") / "digits"
    result = sfumato("export", str(small_run), "--out", str(folder))
    assert result.code == 0, result.err
    assert f'TextToImagePipeline.from_pretrained("{folder}")' in result.out
    assert f'custom_pipeline="{folder}", trust_remote_code=True' in result.out
    return folder


@pytest.fixture
def pipe(exported: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(exported, low_cpu_mem_usage=False)


def draw(pipe, **arguments) -> torch.Tensor:
    """uint8 (3, 1, 8, 8)."""
    arguments = {"seeds": SEEDS, "num_inference_steps": 5, **arguments}
    return pipe(PROMPTS, output_type="uint8", **arguments).images


# Without sfumato ----------------------------------------------------------------------------------


def test_diffusers_alone_draws_the_same_pictures(exported: Path, tmp_path: Path) -> None:
    """With sfumato and pydantic refused; yaml is not, because diffusers itself imports it."""
    cases = [{**case, "class": SAMPLERS[case["sampler"]].scheduler_class} for case in CASES]
    out = tmp_path / "images.safetensors"
    wanted = json.dumps([PROMPTS, SEEDS, cases])
    run_python(WITHOUT_SFUMATO, str(exported), str(out), wanted, cwd=tmp_path, PYTHONPATH="")
    theirs = load_file(out)
    generator = ImageGenerator.open(exported, device="cpu")
    for index, case in enumerate(CASES):
        generator.use(scheduler=case["sampler"])
        ours = draw(generator.pipeline, guidance_scale=case["scale"], guidance=case["form"])
        assert torch.equal(theirs[str(index)], ours), case
    assert len({images.numpy().tobytes() for images in theirs.values()}) == len(CASES)


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


def test_the_same_bytes_on_every_export(exported: Path, small_run: Path, tmp_path: Path) -> None:
    """Also of another process, with another order of sets; and in `pipeline/` of the run."""
    file = (exported / "pipeline.py").read_bytes()
    assert (small_run / "pipeline" / "pipeline.py").read_bytes() == file
    ImageGenerator.open(exported, device="cpu").export(tmp_path / "again")
    assert (tmp_path / "again" / "pipeline.py").read_bytes() == file
    code = (
        "from sfumato.generation.export import standalone_source;print(standalone_source(), end='')"
    )
    source = str(Path(standalone.__file__).parents[1])
    printed = run_python(code, cwd=tmp_path, PYTHONPATH=source, PYTHONHASHSEED="7")
    assert printed.encode() == file


def test_no_pickle(exported: Path) -> None:
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".py"}
    assert [path.name for path in files if path.suffix == ".py"] == ["pipeline.py"]


def test_a_name_with_two_meanings_is_refused(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "twins"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("def same(): return 1\n\ndef first(): return same()\n")
    (package / "two.py").write_text(
        "from twins.one import first\n\ndef same(): return 2\n\ndef root(): return same() + first()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(standalone, "PACKAGE", "twins")
    monkeypatch.setattr(standalone, "ROOT", ("twins.two", "first"))
    scope: dict = {}
    exec(standalone.standalone_source(), scope)
    assert scope["first"]() == 1
    monkeypatch.setattr(standalone, "ROOT", ("twins.two", "root"))
    with pytest.raises(AssertionError, match="two meanings of same"):
        standalone.standalone_source()


def test_a_section_with_behaviour_is_refused() -> None:
    config = standalone._read("sfumato.diffusion.guidance").definitions["GuidanceConfig"]
    with pytest.raises(AssertionError, match="behaviour of its own"):
        standalone._plain(config)


# The command --------------------------------------------------------------------------------------


def test_export_sets_what_the_folder_draws_with(sfumato, exported: Path, tmp_path: Path) -> None:
    """From a pipeline folder, into an empty one."""
    changes = ["-w", "5", "--guidance-form", "rescaled", "--steps", "4", "--sampler", "DDIM"]
    result = sfumato("export", str(exported), "--out", str(tmp_path), *changes)
    assert result.code == 0, result.err
    again = TextToImagePipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert again.config["guidance_scale"] == 5
    assert again.config["guidance"] == "rescaled:phi=0.7"
    assert again.config["num_inference_steps"] == 4
    assert type(again.scheduler) is diffusers.DDIMScheduler
    assert again.config["provenance"]["images_seen"] == 16000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL", "--out", "filled"], ["filled is there already", "new folder"]),
        (["MODEL", "--out", "filled/file"], ["is there already"]),
        (["filled", "--out", "new"], ["neither a run nor a pipeline", "sfumato train"]),
        (["no-such-run", "--out", "new"], ["does not exist"]),
        (["MODEL", "--out", "new", "--steps", "0"], ["0 steps"]),
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


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_scheduler_of_diffusers_can_be_swapped_in(name: str, exported: Path, pipe) -> None:
    """From any other's configuration it is the sampler of that name."""
    generator = ImageGenerator.open(exported, device="cpu")
    generator.use(scheduler=name)
    expected = draw(generator.pipeline)
    scheduler_class = getattr(diffusers, SAMPLERS[name].scheduler_class)
    for before in ("UniPC", "Euler"):
        other = getattr(diffusers, SAMPLERS[before].scheduler_class)
        pipe.scheduler = other.from_config(pipe.scheduler.config)
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
        assert torch.equal(draw(pipe), expected)


def test_schedulers_that_are_refused(pipe) -> None:
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="PNDMScheduler is not a scheduler"):
        draw(pipe)
    pipe.scheduler = diffusers.DDPMScheduler(beta_schedule="sigmoid")
    with pytest.raises(InputError, match="beta_schedule 'sigmoid'"):
        draw(pipe)


def test_generators_are_as_good_as_seeds(pipe) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    assert torch.equal(draw(pipe, seeds=None, generator=generators), draw(pipe))
    one = torch.Generator().manual_seed(SEEDS[0])
    alone = pipe(PROMPTS[0], generator=one, num_inference_steps=5, output_type="uint8").images
    assert torch.equal(alone, draw(pipe)[:1])
    assert not torch.equal(draw(pipe, seeds=None), draw(pipe, seeds=None))  # new seeds each time


def test_what_generators_are_refused(pipe) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="1 seeds for 3 images"):
        draw(pipe, seeds=None, generator=generator)
    on_a_gpu = [SimpleNamespace(device=torch.device("cuda"))] * 3
    with pytest.raises(InputError, match="drawn on the CPU"):
        draw(pipe, seeds=None, generator=on_a_gpu)
    with pytest.raises(InputError, match="not both"):
        draw(pipe, generator=generator)


def test_the_negative_prompt_is_what_guidance_leads_away_from(pipe) -> None:
    """Away from the caption itself is no guidance; away from the empty one is the default."""
    with_itself = pipe(
        PROMPTS[0], negative_prompt=PROMPTS[0], guidance_scale=4, seeds=[3], output_type="pt"
    ).images
    unguided = pipe(PROMPTS[0], guidance_scale=1, seeds=[3], output_type="pt").images
    torch.testing.assert_close(with_itself, unguided, rtol=0, atol=1e-3)
    assert torch.equal(draw(pipe, negative_prompt=""), draw(pipe))
    assert not torch.equal(draw(pipe, negative_prompt=PROMPTS[0]), draw(pipe))


def test_output_types_are_one_picture(pipe) -> None:
    images = draw(pipe)
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
    with pytest.raises(InputError, match="'latent' is not known"):
        pipe(PROMPTS[0], output_type="latent")


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
    full = draw(pipe)
    half = draw(pipe.to("cpu", dtype))
    assert float((half.double() - full.double()).abs().mean()) < 4
    fresh = TextToImagePipeline.from_pretrained(exported, torch_dtype=dtype)
    assert fresh.unet.dtype == fresh.text_encoder.dtype == dtype
    assert torch.equal(draw(fresh), half)
