import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest, ttest_rel

from sfumato.base.errors import TrainingError
from sfumato.base.images import to_float
from sfumato.base.randomness import generator_for
from sfumato.config.schema import load_experiment
from sfumato.config.sections import OptimizerConfig
from sfumato.methods.registry import prepare_run, run_experiment
from sfumato.text.prompts import PromptBank
from sfumato.training.checkpoint import Checkpoints, ResumeWarning
from sfumato.training.hooks import BaseHook
from sfumato.training.loop import train
from sfumato.training.optimizer import learning_rate
from sfumato.training.records import read_records
from sfumato.training.state import load_state, save_state
from sfumato.training.step import dropped_captions, random_flips
from tests.messages import THIS_MACHINE

TINY = [
    "data.resolution=8",
    "model.block_out_channels=[8,16]",
    "model.levels=[plain,attention]",
    "training.batch_size=16",
    "training.images=160",
    "training.log_every_images=48",
    "training.sample_every_images=64",
    "training.checkpoint_every_images=32",
    "training.keep_checkpoints=9",
    "sampling.steps=2",
]
FLOW = ("diffusion.process=rectified_flow", "sampling.sampler=Heun")


def tiny(*more: str):
    return load_experiment("digits", [*TINY, *more])


class StopAfter(BaseHook):
    """Leaves as a kill would: nothing is saved on the way out."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self, run, metrics) -> None:
        if run.step == self.steps:
            raise SystemExit


def equal_states(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal_states(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def final_state(folder: Path) -> dict:
    checkpoint = folder / "checkpoints" / "images-000000160"
    return {part: load_state(checkpoint / f"{part}.safetensors") for part in PARTS}


PARTS = ("unet", "average", "optimizer")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "unbroken"
    run_experiment(tiny(), folder)
    return folder


# Exact resume -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps", [1, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5, 9))]
)
def test_stopped_anywhere_and_started_again_equals_unbroken(steps, unbroken, tmp_path) -> None:
    folder = tmp_path / "broken"
    with pytest.raises(SystemExit):
        run_experiment(tiny(), folder, hooks=[StopAfter(steps)])
    run = run_experiment(tiny(), folder)
    assert run.finished
    assert equal_states(final_state(folder), final_state(unbroken))
    assert (folder / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    for picture in (unbroken / "samples").iterdir():
        assert (folder / "samples" / picture.name).read_bytes() == picture.read_bytes()


def test_the_same_seed_gives_the_same_run_and_another_does_not(unbroken, tmp_path) -> None:
    run_experiment(tiny(), tmp_path / "again")
    assert equal_states(final_state(tmp_path / "again"), final_state(unbroken))
    run_experiment(tiny("seed=1"), tmp_path / "other")
    assert not equal_states(final_state(tmp_path / "other"), final_state(unbroken))


def test_hooks_do_not_change_the_result(unbroken, tmp_path) -> None:
    run = prepare_run(tiny(), tmp_path / "bare")
    run.hooks = []
    train(run)
    bare = {name: part.state_dict() for name, part in run.objective.parts().items()}
    assert equal_states({name: dict(bare[name]) for name in PARTS}, final_state(unbroken))


def test_training_does_not_touch_the_global_generator(tmp_path) -> None:
    before = torch.get_rng_state()
    run_experiment(tiny("training.images=32"), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_request_to_stop_saves_and_the_run_goes_on_exactly(unbroken, tmp_path) -> None:
    class Request(BaseHook):
        def after_step(self, run, metrics) -> None:
            run.stop_requested = run.step == 3

    run = run_experiment(tiny(), tmp_path / "run", hooks=[Request()])
    assert run.images_seen == 48
    assert not run.finished
    assert (tmp_path / "run" / "checkpoints" / "images-000000048").is_dir()
    run_experiment(tiny(), tmp_path / "run")
    assert equal_states(final_state(tmp_path / "run"), final_state(unbroken))


def test_a_run_started_elsewhere_goes_on_with_a_warning(tmp_path, warned) -> None:
    with pytest.raises(SystemExit):
        run_experiment(tiny(), tmp_path / "run", hooks=[StopAfter(3)])
    file = tmp_path / "run" / "checkpoints" / "images-000000032" / "state.json"
    recorded = json.loads(file.read_text())
    recorded["environment"]["threads"] = 99
    file.write_text(json.dumps(recorded))
    with warned(ResumeWarning, theirs=THIS_MACHINE):
        assert prepare_run(tiny(), tmp_path / "run").images_seen == 32


def test_a_run_that_goes_on_and_stops_at_once_rewrites_nothing(tmp_path) -> None:
    """A kill during the rewriting of the newest checkpoint could cost it."""

    def request(run) -> None:
        run.stop_requested = True

    with pytest.raises(SystemExit):
        run_experiment(tiny(), tmp_path / "run", hooks=[StopAfter(3)])
    checkpoint = tmp_path / "run" / "checkpoints" / "images-000000032"
    before = checkpoint.stat().st_ino
    run_experiment(tiny(), tmp_path / "run", on_start=request)
    assert checkpoint.stat().st_ino == before


def test_log_is_the_mean_of_the_steps_since_the_last_line(unbroken, tmp_path) -> None:
    losses = []

    class Listen(BaseHook):
        def after_step(self, run, metrics) -> None:
            losses.append(float(metrics["loss"]))

    run_experiment(tiny(), tmp_path / "run", hooks=[Listen()])
    records = read_records(unbroken / "metrics.jsonl")
    assert [record["images"] for record in records] == [48, 96, 144, 160]
    assert records[0]["loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-12)
    assert records[-1]["loss"] == losses[-1]


@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rectified_flow_that_was_stopped_goes_on_exactly(steps, tmp_path) -> None:
    short = (*FLOW, "training.images=64")
    run_experiment(tiny(*short), tmp_path / "unbroken")
    with pytest.raises(SystemExit):
        run_experiment(tiny(*short), tmp_path / "broken", hooks=[StopAfter(steps)])
    assert run_experiment(tiny(*short), tmp_path / "broken").images_seen == 64
    for part in PARTS:
        file = f"checkpoints/images-000000064/{part}.safetensors"
        broken, unbroken = (tmp_path / name / file for name in ("broken", "unbroken"))
        assert broken.read_bytes() == unbroken.read_bytes()
    samples = "samples/images-000000064.png"
    assert (tmp_path / "broken" / samples).read_bytes() == (
        tmp_path / "unbroken" / samples
    ).read_bytes()


# One step -----------------------------------------------------------------------------------------


def test_caption_dropout_is_within_its_binomial_bound() -> None:
    dropped = sum(
        int(dropped_captions(0.1, 64, generator_for(0, step * 64, "dropout")).sum())
        for step in range(500)
    )
    assert binomtest(dropped, 32_000, 0.1).pvalue > 0.001
    assert not dropped_captions(0.0, 1000, generator_for(0)).any()


def test_dropped_captions_see_the_null_prompt(tmp_path) -> None:
    run = prepare_run(tiny("training.caption_dropout=0.99"), tmp_path / "run")
    seen = []
    tokens = run.objective.bank.tokens
    run.objective.bank.tokens = lambda rows: seen.append(rows) or tokens(rows)
    run.objective.step(run.batches.at(0), run.context())
    assert int((torch.cat(seen) == 0).sum()) >= 14


def test_mirrored_flips_half_of_the_images_as_the_position_says(tmp_path) -> None:
    run = prepare_run(tiny("training.mirrored=true"), tmp_path)
    seen = []
    run.objective.loss = lambda x0, eps, t, prompts, network: (
        seen.append(x0) or sum(p.sum() for p in run.objective.parameters) * 0 + x0.new_ones(16)
    )
    mirrored = 0
    for step in range(8):
        run.images_seen = 16 * step
        batch = run.batches.at(run.images_seen)
        run.objective.step(batch, run.context())
        plain = run.objective.codec.encode(batch.images)
        flips = random_flips(run.context())
        assert torch.equal(seen[-1][flips], plain[flips].flip(3))
        assert torch.equal(seen[-1][~flips], plain[~flips])
        mirrored += int(flips.sum())
    assert binomtest(mirrored, 128, 0.5).pvalue > 1e-3


def test_micro_batches_give_the_same_step_up_to_rounding(tmp_path) -> None:
    results = []
    for parts in (1, 3):
        run = prepare_run(tiny(f"training.micro_batches={parts}"), tmp_path / str(parts))
        metrics = run.objective.step(run.batches.at(0), run.context())
        results.append((metrics["loss"], metrics["grad_norm"]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_dropout_layers_are_seeded_by_the_step_and_leave_the_global_generator(tmp_path) -> None:
    global_state = torch.get_rng_state()
    losses = {}
    for name, start, disturb in (("a", 0, 0), ("again", 0, 99), ("later", 16, 0)):
        run = prepare_run(tiny("model.dropout=0.5"), tmp_path / name)
        run.images_seen = start
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(disturb)
            losses[name] = float(run.objective.step(run.batches.at(0), run.context())["loss"])
    assert losses["a"] == losses["again"]
    assert losses["a"] != losses["later"]
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 5])
def test_with_dropout_layers_a_stopped_run_goes_on_exactly(steps, tmp_path) -> None:
    settings = ("model.dropout=0.3", "training.micro_batches=2")
    run_experiment(tiny(*settings), tmp_path / "unbroken")
    with pytest.raises(SystemExit):
        run_experiment(tiny(*settings), tmp_path / "broken", hooks=[StopAfter(steps)])
    run_experiment(tiny(*settings), tmp_path / "broken")
    assert equal_states(final_state(tmp_path / "broken"), final_state(tmp_path / "unbroken"))


def test_a_checkpoint_at_an_epoch_is_the_first_step_at_or_after_it_and_is_kept(tmp_path) -> None:
    settings = (
        "training.images=4000",
        "training.batch_size=400",
        "training.checkpoint_epochs=[1,2]",
        "training.keep_checkpoints=1",
        "training.checkpoint_every_images=1000000",
        "training.sample_every_images=1000000",
    )
    run_experiment(tiny(*settings), tmp_path / "run")
    # 897 images an epoch: 1,200 and 2,000 are the first multiples of 400 at or after 1 and 2.
    kept = Checkpoints(tmp_path / "run" / "checkpoints").all()
    assert [checkpoint.images_seen for checkpoint in kept] == [1200, 2000, 4000]
    assert kept[1].state["position"] == {"epoch": 2, "seed": 0, "samples": 206}


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path, refused) -> None:
    run = prepare_run(tiny(), tmp_path / "run")
    before = {name: value.clone() for name, value in run.objective.network.state_dict().items()}
    run.objective.bank.tokens = lambda rows: torch.full((len(rows), 8, 512), torch.nan)
    with refused(TrainingError):
        run.take_step()
    after = run.objective.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moments = run.objective.optimizer.state_dict()["state"]
    assert all(not value.any() for state in moments.values() for value in state.values())


def test_the_loss_of_a_step_is_weighted_by_its_setting(tmp_path) -> None:
    """Equal up to the weight of each image's noise level, here in closed form for v."""
    losses = {}
    t = torch.tensor([5, 500, 990])
    for weight in ("uniform", "min_snr"):
        run = prepare_run(tiny(f"training.loss_weight={weight}"), tmp_path / weight)
        noise = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            losses[weight] = run.objective.loss(*noise, t, torch.zeros(3, dtype=torch.long))
    snr = run.objective.process.snr(t)
    expected = losses["uniform"] * (snr.clamp(max=5) / (snr + 1)).float()
    torch.testing.assert_close(losses["min_snr"], expected)


def test_the_loss_of_a_rectified_flow_in_closed_form(tmp_path) -> None:
    """The network sees (1 - t) x0 + t eps at the time 1000 t and predicts eps - x0."""
    run = prepare_run(tiny(*FLOW), tmp_path / "run")
    seen = {}

    def network(x_t, time, tokens, *, return_dict):
        seen.update(x_t=x_t, time=time)
        return (torch.zeros_like(x_t),)

    x0, eps = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 1.0])
    prompts = torch.zeros(3, dtype=torch.long)
    losses = run.objective.loss(x0, eps, t, prompts, network=network)
    torch.testing.assert_close(losses, (eps - x0).square().flatten(1).mean(1))
    torch.testing.assert_close(seen["time"], torch.tensor([100.0, 500.0, 1000.0]))
    column = t[:, None, None, None]
    torch.testing.assert_close(seen["x_t"], (1 - column) * x0 + column * eps)


def test_learning_rate_warms_up_and_decays_in_closed_form() -> None:
    config = OptimizerConfig(lr=2.0, warmup_images=100, decay="cosine")
    for images in (0, 50, 99, 500, 1000):
        expected = 2 * min(1, (images + 1) / 100) * (1 + math.cos(math.pi * images / 1000)) / 2
        rate = learning_rate(config, images_seen=images, total_images=1000)
        assert rate == pytest.approx(expected)
    constant = OptimizerConfig(lr=2.0)
    assert learning_rate(constant, images_seen=0, total_images=10) == 2.0


def test_state_survives_the_file_bit_for_bit(tmp_path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    save_state(state, tmp_path / "optimizer.safetensors")
    assert equal_states(load_state(tmp_path / "optimizer.safetensors"), state)


# A trained model ----------------------------------------------------------------------------------


def test_a_caption_matters(small_run, small_model, digits8, tmp_path) -> None:
    """Shuffled captions raise the loss: paired t-test over 400 images, same noise and time."""
    experiment = load_experiment(str(small_run / "experiment.yaml"))
    objective = prepare_run(experiment, tmp_path).objective
    prompts = [f"A handwritten digit {digit}" for digit in range(10)]
    objective.bank = PromptBank(small_model.text_encoder, prompts)
    generator = torch.Generator().manual_seed(0)
    x0 = to_float(digits8.images[:400], (-1.0, 1.0))
    eps = torch.randn(x0.shape, generator=generator)
    t = torch.randint(1000, (400,), generator=generator)
    right = digits8.labels[:400] + 1  # row 0 of the bank is the empty prompt
    wrong = (digits8.labels[:400] + torch.randint(1, 10, (400,), generator=generator)) % 10 + 1
    with torch.no_grad():
        with_right, with_wrong = (
            objective.loss(x0, eps, t, captions, network=small_model.network)
            for captions in (right, wrong)
        )
    result = ttest_rel(with_wrong.numpy(), with_right.numpy(), alternative="greater")
    assert result.pvalue < 0.01


def test_records_of_a_run_are_json_lines_with_falling_loss(small_run) -> None:
    lines = (small_run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["images"] == 64_000
    assert records[-1]["loss"] < 0.6 * records[0]["loss"]
