"""Interactive evolution: noise as a genome, its operators, the history in a folder."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import acos, cos, degrees, radians, sqrt
from pathlib import Path

import pytest
import torch

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.generation.genome import (
    MOST_SEEDS,
    Genome,
    Recipe,
    Weights,
    deviation,
    drawn_for,
    genome_in_png,
    parse_genome,
    sample_genomes,
)
from sfumato.interactive.evolution import Evolution, parse_picks
from sfumato.interactive.operators import Operators

SHAPE = (3, 64, 64)
PROMPT = "A handwritten digit 7"
PICKS = [(1, 3), (2, 9, 16), (4,)]


@pytest.fixture
def model(small_model):
    return small_model.with_(steps=2)


def evolved(model, folder: Path, picks: Sequence[Sequence[int]] = PICKS, **more) -> Evolution:
    history = Evolution.begin(model, [PROMPT], folder, **more)
    for one in picks:
        history.advance(one)
    return history


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The noise ----------------------------------------------------------------------------------------


def test_covariance_of_relatives_in_closed_form() -> None:
    """Over many draws of the seeds' noise: unit variance, covariance the product of weights."""
    first, second = Weights(((1, 1.0),)), Weights(((2, 1.0),))
    middle = first.crossed(second)
    child = middle.rotated(3, 30)
    sibling = middle.rotated(4, 30)
    family = [first, second, middle, child, sibling]
    turned, half = cos(radians(30)), sqrt(0.5)
    wanted = torch.tensor(
        [
            [1, 0, half, half * turned, half * turned],
            [0, 1, half, half * turned, half * turned],
            [half, half, 1, turned, turned],
            [half * turned, half * turned, turned, 1, turned**2],
            [half * turned, half * turned, turned, turned**2, 1],
        ],
        dtype=torch.float64,
    )
    products = torch.tensor([[a.correlation(b) for b in family] for a in family])
    torch.testing.assert_close(products.double(), wanted, atol=1e-6, rtol=0)
    draws = torch.randn(5, 200_000, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.stack([one.noise(lambda seed: draws[seed]) for one in family])
    torch.testing.assert_close(torch.cov(noise), wanted, atol=0.012, rtol=0)
    fourth = noise[3].pow(4).mean() / 3  # of a normal variable 3
    assert float(fourth) == pytest.approx(1, abs=0.03)


def after(operators: Operators, generations: int) -> list[Genome]:
    """Every generation picks two of its children at random."""
    generator = torch.Generator().manual_seed(5)
    now = [operators.founder(seed, PROMPT) for seed in range(16)]
    for number in range(generations):
        parents = [now[i] for i in torch.randperm(16, generator=generator)[:2].tolist()]
        now = [operators.child(parents, i, f"test/{number}") for i in range(16)]
    return now


def test_deviation_after_20_generations() -> None:
    """Ours stays at 1. Of DeepIE each generation adds half of the squared scale to the variance."""
    ours = after(Operators(), 20)
    assert deviation(ours, SHAPE) == pytest.approx(1, abs=0.02)
    for one in ours:
        assert deviation([one], SHAPE) == pytest.approx(1, abs=0.03)
    theirs = deviation(after(Operators(name="deepie", scale=0.5), 20), SHAPE)
    assert theirs == pytest.approx(sqrt(1 + 20 * 0.5 * 0.5**2), rel=0.02)


def test_a_genome_stays_small() -> None:
    last = after(Operators(), 150)[0]
    assert isinstance(last.first, Weights)
    assert len(last.first.parts) == MOST_SEEDS
    assert sum(w**2 for _, w in last.first.parts) == pytest.approx(1, abs=1e-12)
    assert len(str(last)) < 4000


def test_opposite_parents_have_no_middle() -> None:
    one = Weights(((1, 0.6), (2, 0.8)))
    assert one.crossed(Weights(((1, -0.6), (2, -0.8)))) == one


def test_deepie_crossover_takes_each_value_of_a_parent() -> None:
    drawn = drawn_for(SHAPE)
    both = Recipe((("seed", 1),)).crossed(Recipe((("seed", 2),)), 9)
    noise, first, second = both.noise(drawn), drawn(1), drawn(2)
    assert bool(((noise == first) | (noise == second)).all())
    assert float((noise == first).double().mean()) == pytest.approx(0.5, abs=0.02)
    changed = both.added(7, 0.5).noise(drawn) != noise
    assert float(changed.double().mean()) == pytest.approx(0.5, abs=0.02)
    again = both.crossed(both.added(7, 0.5), 3)  # shared steps are there once
    assert len(again.steps) == len(both.steps) + 2


@pytest.mark.parametrize("picks", [2, 3, 4, 7, 10, 12])
def test_half_of_the_children_have_two_parents(picks: int, monkeypatch) -> None:
    """To half a child; those that are not kept are first parents before those that are."""
    operators, crossed, mutated = Operators(newcomers=2), [], []
    monkeypatch.setattr(Operators, "_crossed", lambda self, a, b, key: crossed.append((a, b)) or a)
    monkeypatch.setattr(Operators, "_mutated", lambda self, one, *_: mutated.append(one) or one)
    parents = [operators.founder(seed, PROMPT) for seed in range(picks)]
    operators.following(parents, [PROMPT], size=16, key="test")
    kept = min(picks, 8)
    children = 16 - kept - 2
    assert abs(2 * len(crossed) - children) <= 1
    assert all(one is not other for one, other in crossed)
    order = [*parents[kept:], *parents[:kept]]
    assert mutated == [order[index % picks] for index in range(children)]
    twice = [operators.child(parents, index, "test") for index in range(2 * picks)]
    assert sorted(str(one) for one, _ in crossed[-picks:]) == sorted(map(str, parents))
    assert len(twice) == 2 * picks


def test_mutation_decays_until_all_are_new(model, tmp_path: Path) -> None:
    """A child of one parent is turned by 45 degrees, its own by 0.8 of that; after `none` by 45."""
    history = evolved(model, tmp_path / "e", [(3,), (16,), (), (5,)])
    turned = []
    for parent, pick, child in ((0, 3, 1), (1, 16, 2), (3, 5, 4)):
        one = history.genome(history.generations[parent].images[pick - 1]).first
        other = history.genome(history.generations[child].images[1]).first
        assert isinstance(one, Weights)
        assert isinstance(other, Weights)
        turned.append(degrees(acos(one.correlation(other))))
    assert turned == pytest.approx([45, 36, 45], abs=1e-4)
    with_newcomers = Operators(newcomers=3, decay=0.5).following(
        [Genome.of_seed(1, PROMPT)], [PROMPT], size=8, key="test", depth=2
    )
    first, *children = [one.first for one in with_newcomers]
    assert isinstance(first, Weights)
    found = [first.correlation(child) for child in children if isinstance(child, Weights)]
    assert found == pytest.approx([cos(radians(45 / 4))] * 4 + [0] * 3, abs=1e-6)


@pytest.mark.parametrize(("angle", "least"), [(45, 5), (2, 2)])
def test_children_differ_however_long_one_picks(angle: float, least: float) -> None:
    """By `LEAST_ANGLE`, or a smaller one that was given; a genome that is full makes room."""
    operators, one = Operators(angle=angle), Genome.of_seed(0, PROMPT)
    for depth in range(150):
        child = operators.child([one], 0, f"test/{depth}", depth)
        assert isinstance(one.first, Weights)
        assert isinstance(child.first, Weights)
        turned = degrees(acos(min(1.0, one.first.correlation(child.first))))
        assert turned >= least - 1e-3
        one = child
    assert len(one.first.parts) == MOST_SEEDS


@pytest.mark.parametrize("name", ["rotation", "deepie"])
def test_text_gives_the_same_genome(name: str) -> None:
    for genome in after(Operators(name=name), 3):
        assert parse_genome(str(genome)) == genome


BAD = {
    "no-json": "seven",
    "a-list": "[]",
    "no-captions": '{"seeds":[1],"weights":[1.0]}',
    "length": '{"seeds":[1,2],"weights":[1.0,1.0],"captions":{"a":1}}',
    "twice": '{"seeds":[1,1],"weights":[0.6,0.8],"captions":{"a":1}}',
    "seed": '{"seeds":[-1],"weights":[1.0],"captions":{"a":1}}',
    "shares": '{"seeds":[1],"weights":[1.0],"captions":{"a":2}}',
    "step": '{"steps":[["blend",0,0,1]],"captions":{"a":1}}',
    "forward": '{"steps":[["seed",1],["cross",0,1,3]],"captions":{"a":1}}',
    "no-numbers": '{"steps":[["seed","1"]],"captions":{"a":1}}',
    "none": '{"steps":[],"captions":{"a":1}}',
}


@pytest.mark.parametrize("name", BAD)
def test_other_text_is_refused(name: str, refused) -> None:
    with refused(InputError):
        parse_genome(BAD[name])


# Sampling -----------------------------------------------------------------------------------------


def test_a_founder_is_the_image_of_its_seed(model) -> None:
    ours = sample_genomes(model, [Genome.of_seed(s, PROMPT) for s in (4, 5)])
    assert torch.equal(ours.x0, model.sample(PROMPT, [4, 5], alone=False).x0)
    assert ours.settings[0]["seed"] == 4
    recipe = Genome(Recipe((("seed", 4),)), ((PROMPT, 1.0),))
    assert torch.equal(sample_genomes(model, [recipe]).x0, ours.x0[:1])


def test_captions_are_mixed(model) -> None:
    """At equal shares the tokens are the mean of both captions."""
    other = "A handwritten digit 3"
    mixed = Genome(Weights(((4, 1.0),)), ((PROMPT, 0.5), (other, 0.5)))
    wanted = model.interpolate([PROMPT, other], 4, [0.5]).x0
    torch.testing.assert_close(sample_genomes(model, [mixed]).x0, wanted, atol=1e-5, rtol=0)


def test_a_png_is_sampled_again(model, tmp_path: Path) -> None:
    history = evolved(model, tmp_path / "e")
    names = history.generations[-1].images
    genomes = [genome_in_png(history.path(name)) for name in names]
    assert torch.equal(sample_genomes(model, genomes).tensor, history.pixels(3))
    again = sample_genomes(model, genomes[5:6])
    assert again.png(0) == history.path(names[5]).read_bytes()


@pytest.mark.parametrize("sampler", ["DDPM", "EulerAncestral", "LCM"])
def test_samplers_that_draw_noise_are_refused(sampler: str, model, tmp_path: Path, refused) -> None:
    with refused(InputError):
        Evolution.begin(model.with_(sampler=sampler), [PROMPT], tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_student_of_one_step(small_model, tmp_path: Path) -> None:
    sampling = replace(
        small_model.sampling,
        sampler="DDIM",
        steps=1,
        guidance_scale=2.0,
        guidance="folded:nfe=1,low=2,high=2",
    )
    student = replace(small_model, sampling=sampling)
    history = evolved(student, tmp_path / "e", [(1, 2)], size=6)
    settings = sample_genomes(student, [history.genome(history.generations[1].images[3])]).settings
    assert settings[0]["nfe"] == 1


# The history --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rotation", "deepie"])
def test_the_same_picks_give_the_same_bytes(name: str, model, tmp_path: Path) -> None:
    operators = Operators(name=name)
    for folder in ("a", "b"):
        evolved(model, tmp_path / folder, operators=operators)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_resumed_is_as_at_once(model, tmp_path: Path) -> None:
    evolved(model, tmp_path / "whole")
    evolved(model, tmp_path / "parts", PICKS[:1])
    for picks in PICKS[1:]:
        Evolution.resume(model, tmp_path / "parts").advance(picks)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")


def test_only_children_are_sampled(model, tmp_path: Path, monkeypatch) -> None:
    history = evolved(model, tmp_path / "e", [])
    counts = []
    monkeypatch.setattr(
        "sfumato.interactive.evolution.sample_genomes",
        lambda model, genomes, **how: (
            counts.append(len(genomes)) or sample_genomes(model, genomes, **how)
        ),
    )
    history.advance((2, 5, 7))
    last = history.generations[-1]
    assert counts == [13]
    assert last.images[:3] == tuple(history.generations[0].images[i - 1] for i in (2, 5, 7))
    assert len(set(last.images)) == 16


def test_branches(model, tmp_path: Path) -> None:
    """A branch is as if the others were not there; the same picks are not sampled twice."""
    history = evolved(model, tmp_path / "e")
    branch = history.advance((5, 6), generation=1)
    assert branch == 4
    assert history.advance((6, 5, 5), generation=1) == 4
    alone = evolved(model, tmp_path / "alone", [PICKS[0], (5, 6)])
    assert history.generations[4].images == alone.generations[2].images
    assert history.generations[4].parent == 1
    tree = json.loads((tmp_path / "e" / "evolution.json").read_text())["generations"]
    assert [one["parent"] for one in tree] == [None, 0, 1, 2, 1]


def test_no_picks_are_all_new_and_all_picks_leave_room(model, tmp_path: Path) -> None:
    history = evolved(model, tmp_path / "e", [(), range(1, 17)])
    founders, new, full = history.generations
    assert not set(founders.images) & set(new.images)
    assert full.kept == 8
    assert full.images[:8] == new.images[:8]


def test_pictures_to_start_with(model, tmp_path: Path, refused) -> None:
    evolved(model, tmp_path / "e", PICKS[:1])
    one = next(iter(Evolution.resume(model, tmp_path / "e").generations[1].images[8:]))
    file = tmp_path / "e" / "images" / f"{one}.png"
    began = Evolution.begin(model, ["A handwritten digit 3"], tmp_path / "new", start=[file])
    assert began.path(began.generations[0].images[0]).read_bytes() == file.read_bytes()
    with refused(InputError):
        genome_in_png(tmp_path / "e" / "generation-000.png")
    other = evolved(model, tmp_path / "d", [], operators=Operators(name="deepie"))
    with refused(InputError):
        Evolution.begin(
            model, [PROMPT], tmp_path / "x", start=[other.path(other.generations[0].images[0])]
        )


def test_what_is_refused(model, tmp_path: Path, refused) -> None:
    with refused(InputError):
        Evolution.begin(model, [], tmp_path / "none")
    with refused(InputError):
        Evolution.begin(
            model, [PROMPT], tmp_path / "small", size=4, operators=Operators(newcomers=2)
        )
    with refused(InputError):
        Evolution.resume(model, tmp_path)
    history = evolved(model, tmp_path / "e", [])
    for picks in ((0,), (17,)):
        with refused(InputError):
            history.advance(picks)
    with refused(InputError):
        history.advance((1,), generation=1)
    with refused(InputError):
        Evolution.begin(model, [PROMPT], tmp_path / "e")
    with refused(InputError):
        Evolution.resume(model.with_(steps=3), tmp_path / "e")
    history.path(history.generations[0].images[2]).unlink()
    with refused(DamagedDataError):
        history.advance((3,))
    file = tmp_path / "e" / "evolution.json"
    about = json.loads(file.read_text())
    for changed in ({"format": 1}, {"operators": None}, {"settings": ...}):
        wrong = {**about, **changed}
        file.write_text(json.dumps({k: v for k, v in wrong.items() if v is not ...}))
        with refused(DamagedDataError):
            Evolution.resume(model, tmp_path / "e")
    for wrong in ({"name": "sexual"}, {"angle": 0}, {"decay": 0}, {"scale": 0}, {"newcomers": -1}):
        with refused(InputError):
            Operators(**wrong)


def test_picks(refused) -> None:
    assert parse_picks("3 7, 12 3", 16) == (3, 7, 12)
    assert parse_picks("none", 16) == ()
    for text in ("", "seven", "0", "17", "3 -1", "3 none"):
        with refused(InputError):
            parse_picks(text, 16)


# The command --------------------------------------------------------------------------------------


def test_evolve(sfumato, small_run: Path, tmp_path: Path) -> None:
    """Begin, go on, branch; as from Python."""
    options = ("--steps", "2", "--device", "cpu", "--out", "e")
    began = sfumato("evolve", str(small_run), PROMPT, *options, cwd=tmp_path)
    assert began.code == 0, began.err
    assert "Generation 0: deviation of the noise" in began.out
    command = began.out[began.out.index("sfumato evolve ") :].replace('"3 7"', '"1 3"')
    assert "--steps" not in command  # they are the history's own
    went = sfumato(*shlex.split(command)[1:], "--device", "cpu", cwd=tmp_path)
    assert "Generation 1 from 0 by 1, 3" in went.out
    sfumato("evolve", str(small_run), *options, "--picks", "2 9 16", "--picks", "4", cwd=tmp_path)
    branch = sfumato(
        "evolve", str(small_run), *options, "--generation", "1", "--picks", "none", cwd=tmp_path
    )
    assert "Generation 4 from 1 by none" in branch.out
    from sfumato.generation.loading import load

    same = evolved(load(small_run, device="cpu").with_(steps=2), tmp_path / "python")
    same.advance((), generation=1)
    assert files_of(tmp_path / "e") == files_of(tmp_path / "python")


def test_evolve_says_what_is_wrong(sfumato, small_run: Path, tmp_path: Path) -> None:
    options = ("--steps", "2", "--device", "cpu", "--out", "e")
    nothing = sfumato("evolve", str(small_run), *options, cwd=tmp_path)
    assert nothing.code == 2
    assert "There is no prompt, and no history in e" in nothing.err
    began = sfumato(
        "evolve", str(small_run), PROMPT, *options, "--operators", "deepie", cwd=tmp_path
    )
    assert began.code == 0
    assert "leaves the N(0, I)" in began.err
    before = files_of(tmp_path / "e")
    for picks, message in (("", "Nothing is picked"), ("17", "'17' is not the number")):
        wrong = sfumato(
            "evolve", str(small_run), *options, "--picks", "1", "--picks", picks, cwd=tmp_path
        )
        assert (wrong.code, message in wrong.err) == (2, True)
    wrong = sfumato("evolve", str(small_run), *options, "--generation", "7", cwd=tmp_path)
    assert wrong.code == 2
    assert "There is no generation 7." in wrong.err
    again = sfumato("evolve", str(small_run), PROMPT, *options, cwd=tmp_path)
    assert "has a history already" in again.err
    for given, message in (
        (("--angle", "5"), "e began with --angle 45.0, not 5.0."),
        (("--operators", "rotation", "--size", "8"), "e began with --size 16, not 8."),
        (("--steps", "3"), "was evolved with steps '2', not '3'."),
    ):
        other = sfumato("evolve", str(small_run), *options, *given, cwd=tmp_path)
        assert (other.code, message in " ".join(other.err.split())) == (2, True), other.err
    assert files_of(tmp_path / "e") == before


def test_asked_in_a_terminal(sfumato, small_run: Path, tmp_path: Path, monkeypatch) -> None:
    """A mistake is asked again; Enter ends."""
    answers = iter(["17", "1 3", "", "never"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda text: next(answers))
    found = sfumato(
        "evolve", str(small_run), PROMPT, "--steps", "2", "--device", "cpu", cwd=tmp_path
    )
    assert found.code == 0, found.err
    assert "'17' is not the number of an image." in found.out
    assert "Generation 1 from 0 by 1, 3" in found.out
    assert next(answers) == "never"


@pytest.mark.parametrize("given", [{"sampler": "DDPM"}, {"negative_prompt": "A photo"}])
def test_pictures_that_need_more_than_a_genome(given, small_model, tmp_path, refused) -> None:
    """Noise of every step and a negative prompt are not in a genome."""
    path = tmp_path / "picture.png"
    path.write_bytes(small_model.with_(steps=2, guidance=2).sample(PROMPT, 1, **given).png(0))
    with refused(InputError):
        genome_in_png(path)
