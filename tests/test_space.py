"""`sfumato export --space`: what the folder has. `test_space_started.py` starts its page."""

import ast
import json
import re
import sys
from dataclasses import replace
from importlib.metadata import requires
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

from sfumato.base.errors import InputError
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.space.writing import GRADIO, PYTHON, page_settings, space_card
from sfumato.interactive.studio.shelf import description

ROOT = Path(__file__).parents[1]
DIGITS = [f"A handwritten digit {digit}" for digit in range(10)]


def front_of(card: str) -> dict[str, Any]:
    """What Hugging Face reads at the top of a README."""
    found = re.match(r"---\n(.*?\n)---\n\n# ", card, flags=re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {found: Version(version) for found, version in pairs}


def requirements() -> dict[str, Requirement]:
    text = (files("sfumato.generation.space") / "requirements.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {Requirement(line).name: Requirement(line) for line in lines}


# The folder ---------------------------------------------------------------------------------------


def test_the_folder_is_an_export_with_a_page(sfumato, small_run: Path, tmp_path: Path) -> None:
    """Its model is what `export` writes alone, byte for byte."""
    result = sfumato("export", str(small_run), "--out", "page", "--space", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "pip install -r page/requirements.txt" in result.out.replace("page-env/bin/", "")
    folder = tmp_path / "page"
    assert {path.name for path in folder.iterdir()} == {
        "app.py",
        "requirements.txt",
        "settings.json",
        "README.md",
        "model",
    }
    plain = small_run / "model"
    names = {path.relative_to(plain) for path in plain.rglob("*") if path.is_file()}
    assert names == {
        path.relative_to(folder / "model")
        for path in (folder / "model").rglob("*")
        if path.is_file()
    }
    for name in names:
        assert (folder / "model" / name).read_bytes() == (plain / name).read_bytes(), name
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    model = load(folder / "model", device="cpu")
    assert settings == page_settings(model)
    assert (folder / "README.md").read_text("utf-8") == space_card(model, settings)


def test_no_path_of_this_machine_is_published(small_run: Path, tmp_path: Path) -> None:
    """Folders have their names; a student is called after its teacher."""
    model = load(small_run, device="cpu")
    data = {**model.provenance["data"], "source": str(tmp_path), "also_train": [str(tmp_path)]}
    origin = {"origin": str(tmp_path / "teacher"), "experiment": "student-1"}
    model = replace(model, provenance={**model.provenance, "data": data, **origin})
    model.export(tmp_path / "page", space=True)
    index = (tmp_path / "page" / "model" / "model_index.json").read_text("utf-8")
    card = (tmp_path / "page" / "README.md").read_text("utf-8")
    assert str(tmp_path) not in index + card
    assert json.loads(index)["provenance"]["data"]["source"] == tmp_path.name
    assert front_of(card)["title"] == "teacher, student-1"
    assert f"- Trained on: {tmp_path.name}\n" in card


def test_examples_of_a_page_are_read_from_a_folder_of_images(
    small_run: Path, tmp_path: Path
) -> None:
    """Of a model that was trained on this machine, before its path is left out."""
    for number in range(6):
        for name in ("cat", "dog"):
            file = tmp_path / "pets" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 40 * number).save(file)
    model = load(small_run, device="cpu")
    data = {
        **model.provenance["data"],
        "source": str(tmp_path / "pets"),
        "caption": ["a {class_name}"],
    }
    model = replace(model, provenance={**model.provenance, "data": data, "examples": None})
    model.export(tmp_path / "page", space=True)
    settings = json.loads((tmp_path / "page" / "settings.json").read_text("utf-8"))
    assert settings["examples"] == ["a cat", "a dog"]


def test_the_app_is_short_and_needs_what_is_required_alone() -> None:
    source = (files("sfumato.generation.space") / "app.py").read_text("utf-8")
    assert len(source.splitlines()) < 120
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert imported - sys.stdlib_module_names == {"gradio", "torch", "diffusers"}
    assert imported - sys.stdlib_module_names <= requirements().keys()


@pytest.mark.parametrize("filled", ["a file", "a folder"])
def test_nothing_is_overwritten(filled: str, sfumato, small_run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" if filled == "a file" else tmp_path / "out" / "app.py"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    result = sfumato("export", str(small_run), "--out", "out", "--space", cwd=tmp_path)
    assert result.code == 2
    assert mine.read_text() == "mine"


# What the page offers -----------------------------------------------------------------------------


def test_the_settings_of_a_model(small_model: Model) -> None:
    assert page_settings(small_model) == {
        "title": "digits",
        "about": "Makes pictures of 8 x 8 pixels from captions, in 12 network evaluations each.",
        "image_px": 8,
        "examples": DIGITS,
        "negative_prompt": True,
        "guidance": {"value": 3.0, "low": 0.0, "high": 10.0},
        "steps": {"value": 6, "low": 1, "high": 100},
        "count": {"value": 4, "low": 1, "high": 8},
    }


def test_a_student_of_one_step_leaves_no_choice() -> None:
    settings = page_settings(load("bundled:mnist-1", device="cpu"))
    assert settings["steps"] is settings["guidance"] is None
    assert settings["negative_prompt"] is False
    assert settings["examples"] == DIGITS
    assert "in 1 network evaluation each" in settings["about"]


def test_a_student_of_several_scales_is_asked_for_those(small_model: Model) -> None:
    sampling = Sampling(
        sampler="DDIM", steps=2, guidance_scale=2, guidance="folded:nfe=2,low=1,high=4"
    )
    settings = page_settings(replace(small_model, sampling=sampling))
    assert settings["guidance"] == {"value": 2, "low": 1, "high": 4}
    assert settings["steps"] is None


def test_sliders_reach_the_models_own_settings(small_model: Model) -> None:
    settings = page_settings(small_model.with_(guidance=25, steps=200))
    assert settings["guidance"] == {"value": 25, "low": 0, "high": 25}
    assert settings["steps"] == {"value": 200, "low": 1, "high": 200}


def test_autoguidance_takes_no_negative_prompt(small_model: Model) -> None:
    """It leads away from a weaker network."""
    weak = replace(small_model.sampling, guidance="autoguidance")
    assert page_settings(replace(small_model, sampling=weak))["negative_prompt"] is False


def test_without_its_data_a_model_has_no_examples(small_model: Model) -> None:
    """Neither on the page nor in the studio."""
    unknown = replace(small_model, provenance={})
    settings = page_settings(unknown)
    assert settings["examples"] == description(unknown)["examples"] == []
    assert settings["title"] == "sfumato"
    with pytest.raises(InputError):
        unknown.examples()


# What Hugging Face and pip read -------------------------------------------------------------------


@pytest.mark.parametrize("title", ["small", 'a: "b" #c', "---", "Пейзаж", "12", "- {}"])
def test_the_front_matter_parses(title: str, small_model: Model) -> None:
    settings = {**page_settings(small_model), "title": title}
    front = front_of(space_card(small_model, settings))
    assert front == {
        "title": title,
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "python_version": PYTHON,
        "app_file": "app.py",
        "license": "apache-2.0",
        "short_description": "Pictures of 8 x 8 pixels from captions",
        "tags": ["text-to-image"],
    }
    assert len(front["short_description"]) <= 60


def test_the_card_says_where_the_model_is_from(small_model: Model) -> None:
    card = space_card(small_model, page_settings(small_model))
    assert "\n- Images seen in training: 64,000\n" in card
    assert small_model.provenance["weights_sha256"] in card


def test_requirements_are_ours_and_admit_what_was_tested() -> None:
    ours = {Requirement(line).name: Requirement(line) for line in requires("sfumato") or []}
    whole = pins("constraints.txt")
    tested = whole | pins("constraints-space.txt")
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(tested[name]), name
        assert any(part.operator == "<" for part in requirement.specifier), name
        if name not in ("gradio", "pillow"):
            (least,) = ours[name].specifier
            assert str(least) in map(str, requirement.specifier), name
            assert requirement.specifier.contains(whole[name]), name
    assert str(tested["gradio"]) == GRADIO
