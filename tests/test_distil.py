"""Distillation: ideal targets, trajectories made once, students that are exactly resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file
from sfumato.base.lock import locked
from sfumato.config.schema import load_experiment
from sfumato.data.trajectories import (
    INDEX,
    generator_of,
    open_trajectories,
    places_of,
    student_times,
)
from sfumato.diffusion.guidance import scale_embedding
from sfumato.diffusion.process import Preconditioned, RectifiedFlow, VariancePreserving
from sfumato.diffusion.sampling import initial_noise
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import STUDENT_SAMPLERS, Sampling
from sfumato.evaluation.bundling import write_bundle
from sfumato.generation.loading import load
from sfumato.generation.runs import experiment_of_run
from sfumato.generation.trajectories import Request, _scale_of, make_trajectories
from sfumato.methods.diffusion import _check_ranks, _network
from sfumato.methods.distillation import Plan, student_experiment, teachers_trajectories
from sfumato.methods.registry import run_experiment
from sfumato.studies.listing import summary
from sfumato.text.bundled import BUNDLED_FOLDER
from sfumato.text.towers import load_towers
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.distributed import ALONE, World
from sfumato.training.features import FeatureDistance, bundled_stages
from sfumato.training.hooks import BaseHook
from sfumato.training.loop import Run
from sfumato.training.objectives.distillation import Levels, ideal_x0, random_levels

PROCESSES = [
    VariancePreserving(),
    VariancePreserving(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    RectifiedFlow(),
    Preconditioned(),
]
CAPTIONS = ["A handwritten digit 3", "A handwritten digit 7"]
SHORT = [
    "training.images=96",
    "training.batch_size=16",
    "training.log_every_images=16",
    "training.checkpoint_every_images=32",
    "training.sample_every_images=96",
    "distillation.measure_every_images=32",
    "distillation.features=0.05",
]


# What a student learns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "process", PROCESSES, ids=lambda one: f"{one.process}-{one.prediction_type}"
)
@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_the_ideal_x0_leads_to_the_next_state(process, nfe: int) -> None:
    """By the sampler that the student is drawn with: its step from x_t with that x0 is x_r."""
    generator = torch.Generator().manual_seed(0)
    levels = Levels.of(process, nfe, levels=4, device=torch.device("cpu"))
    states = torch.randn(5, nfe + 1, 3, 4, 4, generator=generator)
    sampling = Sampling(sampler=STUDENT_SAMPLERS[process.process], steps=nfe)
    solver = build_solver(process, sampling)
    assert torch.equal(solver.times, levels.times)
    for number in range(nfe):
        x_t, x_r = states[:, number], states[:, number + 1]
        a, s = ((one[number].expand(5), one[number + 1].expand(5)) for one in (levels.a, levels.s))
        found = solver.step(ideal_x0(x_t, x_r, a, s), x_t, index=number)
        torch.testing.assert_close(found, x_r, atol=2e-4, rtol=2e-4)


def test_at_the_image_the_ideal_x0_is_the_image() -> None:
    x_t, image = torch.randn(2, 3, 1, 4, 4).unbind(1)[:2]
    one, zero = torch.ones(2), torch.zeros(2)
    assert torch.equal(ideal_x0(x_t, image, (0.3 * one, one), (0.9 * one, zero)), image)


def test_every_level_is_equally_often_in_a_batch_or_has_the_same_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    assert random_levels(16, 4, generator).bincount().tolist() == [4, 4, 4, 4]
    for count, levels in ((4, 8), (10, 4), (1, 3)):
        drawn = torch.cat([random_levels(count, levels, generator) for _ in range(4_000)])
        shares = drawn.bincount(minlength=levels) / len(drawn)
        assert len(drawn) == 4_000 * count
        assert torch.allclose(shares, torch.full((levels,), 1 / levels), atol=0.03)


def test_scales_of_trajectories_are_denser_towards_the_lowest() -> None:
    request = Request(levels=1, count=1, teacher_steps=1, low=1, high=3)
    scales = sorted(_scale_of(request, part) for part in range(64))
    assert (scales[0], scales[-1]) == (1, 3)
    for share in (0.25, 0.5, 0.75):  # quantiles of 1 + 2 u^2 for u uniform in (0, 1)
        assert scales[int(share * 64)] == pytest.approx(1 + 2 * share**2, abs=0.1)


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_a_student_of_fewer_steps_learns_from_the_states_at_its_own_levels(nfe: int) -> None:
    """Every second state for DDIM and a flow; those of EDM are not evenly spread."""
    for process in PROCESSES:
        levels = Levels.of(process, nfe, levels=4, device=torch.device("cpu"))
        *states, image = levels.states.tolist()
        assert image == 4
        assert student_times(process, 4)[states].tolist() == levels.times.tolist()
    assert places_of(Preconditioned(), 2, levels=4) == [0, 3]
    assert places_of(RectifiedFlow(), 2, levels=4) == [0, 2]


def test_levels_that_trajectories_do_not_pass_are_refused(tiny_edm, tmp_path, refused) -> None:
    with refused(InputError):
        places_of(Preconditioned(), 4, levels=8)
    for teacher_steps in (16, 9):
        with refused(InputError):
            request = Request(levels=8, count=1, teacher_steps=teacher_steps, low=1, high=1)
            make_trajectories(tiny_edm, request, tmp_path / "t", captions=CAPTIONS, rows=[0])


@pytest.mark.slow
def test_a_student_is_trained_in_one_process(plan, sfumato, monkeypatch, refused) -> None:
    with refused(ConfigError):
        _check_ranks(experiment_of_run(plan.run(4)), World(size=2))
    monkeypatch.setattr("sfumato.training.distributed.world_of", lambda _: World(size=2))
    done = sfumato("distil", plan.teacher, "--nfe", "1")
    assert (done.code, "in one process, not in 2" in done.err) == (2, True)


def test_distance_of_features() -> None:
    tower = load_towers(BUNDLED_FOLDER)[0].image
    distance = FeatureDistance((-1.0, 1.0), tower.stages)
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(distance(images, images), torch.zeros(3))
    changed = (images + 0.3).requires_grad_(True)
    found = distance(changed, images)
    assert (found > 0).all()
    assert torch.allclose(found, distance(changed[[0, 1, 2]], images))
    found.sum().backward()
    assert changed.grad is not None
    assert changed.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in tower.parameters())
    colours = (
        images.expand(-1, 3, -1, -1) / 2 + 0.5
    )  # the same picture in [0, 1] and three channels
    other = FeatureDistance((0.0, 1.0), bundled_stages(torch.device("cpu")))
    shifted = (changed.detach() / 2 + 0.5).expand(-1, 3, -1, -1)
    torch.testing.assert_close(other(shifted, colours), found.detach())


# Trajectories -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(small_run: Path):
    return load(small_run, device="cpu").with_(guidance=2.0)


@pytest.fixture(scope="module")
def tiny_edm(teacher):
    """The same network as an EDM; its pictures mean nothing."""
    return replace(teacher, process=Preconditioned(), sampling=Sampling(sampler="Euler", steps=4))


def make(teacher, folder: Path, *, count: int = 70, **changes):
    given = {"low": 2.0, "high": 2.0, **changes}
    request = Request(levels=4, count=count, teacher_steps=8, **given)
    rows = [row % 2 for row in range(count)]
    return make_trajectories(teacher, request, folder, captions=CAPTIONS, rows=rows)


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory: pytest.TempPathFactory):
    return make(teacher, tmp_path_factory.mktemp("made") / "trajectories")


def test_one_process_makes_them(teacher, tmp_path: Path, refused, monkeypatch) -> None:
    monkeypatch.setattr("sfumato.base.lock.WAIT_SECONDS", 0.1)
    with (
        locked(tmp_path / "trajectories"),
        refused(InputError, theirs=r"process \d+[^\n]*"),
    ):
        make(teacher, tmp_path / "trajectories")
    assert not (tmp_path / "trajectories").exists()


def test_they_are_the_states_of_the_teachers_sampling(made, teacher) -> None:
    """Against the loop itself: the same noise, the states at the four levels, the image."""
    seen = {}
    model = teacher.with_(sampler="DPMSolver++", steps=8, timestep_spacing="trailing")
    passed = build_solver(model.process, model.sampling).times.tolist()
    noise = initial_noise(model.shape, [generator_of(0, 65)])

    def keep(step) -> None:
        if step.index + 1 < step.count:
            seen[passed[step.index + 1]] = step.x_t.clone()

    image = model.denoise(
        model.tokens([CAPTIONS[1]]), [generator_of(0, 65)], noise=noise, on_step=keep
    ).x0
    times = student_times(model.process, 4).tolist()
    expected = torch.cat([noise, *(seen[time] for time in times[1:]), image])
    assert made.states.shape == (70, 5, *model.shape)
    torch.testing.assert_close(made.states[65].float(), expected, atol=2e-3, rtol=2e-3)
    assert made.captions[made.rows[65]] == CAPTIONS[1]


def test_what_is_there_is_kept_and_the_rest_has_the_same_bytes(made, teacher, tmp_path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(made.folder, folder)
    index = json.loads((folder / INDEX).read_text())
    before = sha256_of_file(folder / INDEX)
    removed = index["parts"].popitem()
    (folder / removed[0]).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="not finished"):
        open_trajectories(folder)
    kept = (folder / "part-00000.safetensors").stat().st_mtime_ns
    make(teacher, folder)
    assert (folder / "part-00000.safetensors").stat().st_mtime_ns == kept
    assert sha256_of_file(folder / INDEX) == before


def test_another_version_of_sfumato_goes_on(made, teacher, monkeypatch) -> None:
    recorded = made.about["sfumato"]
    monkeypatch.setattr("sfumato.__version__", "99")
    assert make(teacher, made.folder).about["sfumato"] == recorded != "99"


def test_what_is_refused(made, teacher, tmp_path: Path, refused) -> None:
    with refused(ConfigError):
        make(teacher.with_(guidance=3.0), made.folder)
    with refused(ConfigError):
        make(teacher, made.folder, seed=1)
    trained = replace(teacher, provenance={**teacher.provenance, "images_seen": 1})
    with refused(ConfigError):
        make(trained, made.folder)
    with refused(InputError):
        Plan(teacher="runs/a", nfe=(4,), folder=tmp_path, count=511, teacher_steps=8, scales=(1, 3))
    with refused(InputError):
        Request(levels=4, count=10, teacher_steps=6, low=1, high=1)
    with refused(InputError):
        open_trajectories(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(made.folder, broken)
    with (broken / "part-00001.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with refused(DamagedDataError):
        open_trajectories(broken).states  # noqa: B018
    for nfe in ((1, 2), (4, 3), (2, 2)):
        with refused(InputError):
            Plan(teacher="runs/a", nfe=nfe, folder=tmp_path, count=10, teacher_steps=16)


# Students -----------------------------------------------------------------------------------------


def plan_of(small_run: Path, folder: Path) -> Plan:
    return Plan(teacher=str(small_run), nfe=(4, 1), folder=folder, count=70, teacher_steps=8)


def train(plan: Plan, teacher, nfe: int, *settings: str, hooks: tuple = ()) -> Run:
    experiment = student_experiment(plan, teacher, nfe, ["data.source=digits", *SHORT, *settings])
    teachers_trajectories(plan, teacher, experiment, on_part=lambda made: None)
    return run_experiment(experiment, plan.run(nfe), device="cpu", hooks=hooks)


@pytest.fixture(scope="module")
def plan(small_run: Path, teacher, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    found = plan_of(small_run, tmp_path_factory.mktemp("students") / "row")
    for nfe in found.nfe:
        train(found, teacher, nfe)
    return found


class StopAt(BaseHook):
    def __init__(self, images: int) -> None:
        self.images = images

    def after_step(self, run: Run, metrics) -> None:
        run.stop_requested |= run.images_seen >= self.images


def test_stopped_and_started_again_equals_unbroken(plan, small_run, teacher, tmp_path) -> None:
    other = plan_of(small_run, tmp_path / "row")
    shutil.copytree(plan.trajectories, other.trajectories)
    train(other, teacher, 4, hooks=(StopAt(48),))
    assert train(other, teacher, 4).finished
    ours, theirs = (Checkpoints(one.run(4) / "checkpoints").latest() for one in (other, plan))
    assert ours is not None
    assert theirs is not None
    for part in ("unet", "average", "optimizer"):
        assert ours.sha256(part) == theirs.sha256(part)
    for name in ("metrics.jsonl", "held_out.jsonl"):
        assert (other.run(4) / name).read_text() == (plan.run(4) / name).read_text()


@pytest.mark.slow
def test_it_ends_when_held_out_trajectories_gain_no_more(
    plan, small_run, teacher, tmp_path
) -> None:
    """With a rate so large that every measurement is worse; started again, it has ended."""
    other = plan_of(small_run, tmp_path / "row")
    shutil.copytree(plan.trajectories, other.trajectories)
    settings = ("training.optimizer.lr=0.5", "distillation.patience=1", "training.images=640")
    run = train(other, teacher, 4, *settings)
    assert run.finished
    assert run.images_seen < 640
    losses = [json.loads(line)["loss"] for line in (other.run(4) / "held_out.jsonl").open()]
    assert losses[-1] >= min(losses[:-1])
    again = train(other, teacher, 4, *settings)
    assert (again.finished, again.images_seen) == (True, run.images_seen)


@pytest.mark.slow
def test_a_student_is_resumed_with_its_own_trajectories_alone(
    small_run, teacher, tmp_path, refused
) -> None:
    """Remade by a teacher of other guidance, or as another number of them."""
    plan = plan_of(small_run, tmp_path / "row")
    run = train(plan, teacher, 4, "training.images=16")
    assert run.finished
    recorded = (plan.run(4) / "experiment.yaml").read_text()
    shutil.rmtree(plan.trajectories)
    with refused(ConfigError):
        train(replace(plan, count=80), teacher, 4, "training.images=16")
    shutil.rmtree(plan.trajectories)
    with refused(ConfigError):
        train(plan, teacher.with_(guidance=3.0), 4, "training.images=16")
    shutil.rmtree(plan.trajectories)
    assert (plan.run(4) / "experiment.yaml").read_text() == recorded
    assert train(plan, teacher, 4, "training.images=16").finished


@pytest.mark.slow
@pytest.mark.parametrize(("held_out", "trained"), [(0.1, 63), (0.001, 70), (0, 70)])
def test_an_epoch_of_a_student_is_the_trajectories_that_it_trains_on(
    plan, small_run, teacher, tmp_path, held_out: float, trained: int
) -> None:
    """Started again, the run is as long; without held-out trajectories there is no loss on them."""
    other = plan_of(small_run, tmp_path / "row")
    shutil.copytree(plan.trajectories, other.trajectories)
    length = ["training.epochs=1.2", f"distillation.held_out={held_out}"]
    settings = ["data.source=digits", *SHORT[1:], *length]
    for _ in range(2):
        experiment = student_experiment(other, teacher, 4, settings)
        run = run_experiment(experiment, other.run(4), device="cpu")
        assert run.total_images == round(1.2 * trained)
        assert summary(other.run(4)).total_images == run.total_images
        assert run.finished
    assert (other.run(4) / "held_out.jsonl").exists() == (trained < 70)


def test_settings_without_effect_on_a_student_are_refused(plan, flexible, refused) -> None:
    file = plan.run(4) / "experiment.yaml"
    changes = ["caption_dropout=0.1", "mirrored=true", "loss_weight=min_snr", "min_snr_gamma=3"]
    with refused(ConfigError):
        load_experiment(file, [f"training.{change}" for change in changes])
    assert load_experiment(file, ["training.mirrored=false", "training.lora.rank=4"])
    with refused(ConfigError):
        load_experiment(flexible.run(4) / "experiment.yaml", ["training.lora.rank=4"])


def test_a_student_learns(plan) -> None:
    """The loss on trajectories that it never saw falls."""
    losses = [json.loads(line)["loss"] for line in (plan.run(4) / "held_out.jsonl").open()]
    assert losses[-1] < losses[0]


def test_a_student_takes_its_own_settings_and_no_others(plan, refused) -> None:
    model = load(plan.run(4), device="cpu")
    assert model.nfe() == 4
    samples = model.sample(CAPTIONS, range(2))
    assert samples.nfe == 4
    assert samples.settings[0]["guidance"] == "folded:nfe=4,low=2,high=2"
    assert samples.settings[0]["guidance_scale"] == 2.0
    evaluation = experiment_of_run(plan.run(4)).evaluation
    assert evaluation.guidance_scales == evaluation.quick_scales == (2.0,)
    for changes in (
        {"steps": 8},
        {"guidance": 3.0},
        {"sampler": "DPMSolver++"},
        {"timestep_spacing": "leading"},
        {"form": "cfg"},
        {"sampler": "Euler"},  # the sampler of students of other processes
        {"negative_prompt": "A handwritten digit 3"},
    ):
        with refused(InputError):
            model.sample(CAPTIONS, range(2), **changes)
    assert torch.equal(model.sample(CAPTIONS, range(2), steps=4, guidance=2).tensor, samples.tensor)
    teacher = replace(model, sampling=Sampling())
    with refused(InputError):
        teacher.with_(form="folded:nfe=4,low=2,high=2")
    with refused(InputError):
        model.interpolate(CAPTIONS, 0, [0.5], negative_prompt="A handwritten digit 3")
    with refused(ConfigError):
        load_experiment("digits", ["sampling.guidance=folded"])


def test_an_exported_student_draws_the_same(plan, tmp_path: Path, refused) -> None:
    from sfumato.generation.pipeline import TextToImagePipeline

    model = load(plan.run(1), device="cpu")
    model.export(tmp_path / "model")
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "model")
    found = pipe(CAPTIONS, seeds=[0, 1], output_type="uint8").images
    assert torch.equal(found, model.sample(CAPTIONS, range(2)).tensor)
    for changes in ({"num_inference_steps": 2}, {"guidance_scale": 5.0}, {"guidance": "apg"}):
        with refused(InputError):
            pipe(CAPTIONS, seeds=[0, 1], **changes)
    with refused(InputError):
        pipe(CAPTIONS, seeds=[0, 1], negative_prompt="A handwritten digit 3")
    with refused(InputError):
        cond, uncond = pipe.encode_prompt(CAPTIONS)
        pipe(prompt_embeds=cond, negative_prompt_embeds=uncond, seeds=[0, 1])
    assert len(pipe(CAPTIONS, seeds=[0, 1], negative_prompt=[None, ""]).images) == 2

    def guide_more(pipeline, *_) -> dict:
        pipeline._guidance_scale = 3.0
        return {}

    with refused(InputError):
        pipe(CAPTIONS, seeds=[0, 1], callback_on_step_end=guide_more)


# The guidance scale as an input ------------------------------------------------------------------


def test_a_bundled_student_says_how_it_was_distilled_and_names_no_folder(
    plan, tmp_path: Path
) -> None:
    write_bundle(plan.run(1), tmp_path / "student")
    index = read_json(tmp_path / "student" / "bundle.json")
    assert index["training"]["command"].startswith(
        f"sfumato distil {Path(plan.teacher).name} --data digits --nfe 4,1 --count {plan.count} "
        "--teacher-steps 8 --guidance 2 --guidance-form cfg "
    )
    for file in (tmp_path / "student").rglob("*.*"):
        content = file.read_bytes()
        assert str(plan.folder).encode() not in content, file
        assert str(plan.teacher).encode() not in content, file
    bundled = load(tmp_path / "student", device="cpu")
    assert bundled.sampling == load(plan.run(1), device="cpu").sampling
    assert bundled.nfe() == 1


def test_the_embedding_of_w_is_that_of_latent_consistency_models() -> None:
    from diffusers import LatentConsistencyModelPipeline

    scales = torch.tensor([1.0, 1.25, 3.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, scales - 1, embedding_dim=32
    )
    torch.testing.assert_close(scale_embedding(scales, 32), theirs, atol=1e-4, rtol=1e-4)
    assert scale_embedding(scales, 5).shape == (3, 5)


@pytest.fixture(scope="module")
def flexible(small_run: Path, teacher, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    row = plan_of(small_run, tmp_path_factory.mktemp("flexible") / "row")
    found = replace(row, nfe=(4,), count=512, scales=(1.0, 3.0))
    train(found, teacher, 4, "training.images=320")
    return found


def test_trajectories_are_spread_over_the_scales(flexible: Plan) -> None:
    scales = open_trajectories(
        flexible.trajectories
    ).scales.unique()  # sorted; a part of 32 has one
    assert (float(scales[0]), float(scales[-1])) == (1, 3)  # the ends are among them
    assert len(scales) == 16
    assert scales.diff().max() < 0.4


def test_it_begins_as_its_origin_at_every_w(flexible: Plan, small_run: Path) -> None:
    experiment = experiment_of_run(flexible.run(4))
    network = _network(experiment, flexible.run(4), torch.device("cpu"), ALONE).eval()
    origin = load(small_run, device="cpu").network
    x_t, t, tokens = torch.randn(2, 1, 8, 8), torch.tensor(500), torch.randn(2, 16, 512)
    scale = scale_embedding(torch.tensor([1.0, 3.0]), network.config.time_cond_proj_dim)
    with torch.no_grad():
        found = network(x_t, t, tokens, timestep_cond=scale, return_dict=False)[0]
        assert torch.equal(found, origin(x_t, t, tokens, return_dict=False)[0])


def test_it_draws_by_w(flexible: Plan, tmp_path: Path, refused) -> None:
    from sfumato.generation.pipeline import TextToImagePipeline

    model = load(flexible.run(4), device="cpu")
    low, high = (model.sample(CAPTIONS, range(2), guidance=scale) for scale in (1.0, 3.0))
    assert low.nfe == high.nfe == 4
    assert not torch.equal(low.x0, high.x0)
    assert high.settings[0]["guidance_scale"] == 3.0
    with refused(InputError):
        model.with_(guidance=3.5)
    assert model.sampling.scales_among((0, 1, 3, 5)) == (1, 3)
    assert model.sampling.scales_among((0, 5)) == (model.sampling.guidance_scale,)
    assert replace(model.sampling, guidance="cfg").scales_among((0, 5)) == (0, 5)
    model.export(tmp_path / "model")
    pipe = TextToImagePipeline.from_pretrained(tmp_path / "model")
    found = pipe(CAPTIONS, seeds=[0, 1], guidance_scale=3.0, output_type="uint8").images
    assert torch.equal(found, high.tensor)
    alone = model.sample(CAPTIONS[1], 1, guidance=3.0, alone=False)
    assert torch.equal(alone.x0, high.x0[1:])


def test_the_command(sfumato, small_run: Path, tmp_path: Path) -> None:
    settings = [part for one in SHORT for part in ("--set", one)]
    arguments = (str(small_run), "--nfe", "2", "--count", "20", "--teacher-steps", "4")
    out = tmp_path / "students"
    done = sfumato("distil", *arguments, "--out", str(out), *settings)
    assert done.code == 0, done.err
    assert "Student of 2 network evaluations" in done.out
    assert load(out / "nfe-2", device="cpu").nfe() == 2


@pytest.mark.parametrize("command", ["guidance", "findings", "nfe", "table1", "distil", "tune"])
def test_commands_that_vary_the_sampling_take_no_student(plan, sfumato, command: str) -> None:
    """Before a classifier is trained for it."""
    done = sfumato(command, str(plan.run(1)))
    assert done.code == 2
    assert "is a distilled student, which this command does not take" in done.err
    assert "Give its teacher." in done.err
