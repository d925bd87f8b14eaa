"""Surveys: forms, what the public may see, intervals with a known truth, what an analysis says."""

import json
import math
import re
import stat
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.base.errors import DamagedDataError, DataWarning, InputError
from sfumato.base.randomness import derived_seed
from sfumato.interactive.survey.analysis import Result as ResultOf
from sfumato.interactive.survey.analysis import analyse, answers_of, differences_of, holm
from sfumato.interactive.survey.answers import Answer, Session, read_sessions, returned
from sfumato.interactive.survey.bootstrap import Answers, Crossed, crossed_bootstrap, means
from sfumato.interactive.survey.build import build_survey
from sfumato.interactive.survey.crowd import (
    Asked,
    Crowd,
    expected_mean,
    simulate,
    simulated_answers,
    true_means,
)
from sfumato.interactive.survey.designs import DESIGNS, REAL, design_of, groups_of
from sfumato.interactive.survey.exclusions import Rules, reasons
from sfumato.interactive.survey.forms import Settings, make_layout, most_trials
from sfumato.interactive.survey.key import Key, read_key
from sfumato.interactive.survey.pictures import alike, arms_of, real_arm
from sfumato.interactive.survey.power import (
    Effect,
    Given,
    crowd_with,
    power_of,
    power_table,
    smallest,
)
from sfumato.interactive.survey.strengths import (
    PRIOR,
    bradley_terry,
    is_connected,
    krippendorff_alpha,
)
from sfumato.interactive.survey.unanimous import (
    exact_limits,
    hidden_variances,
    independent_answers,
    sign_test,
)
from tests.surveys import (
    NAMES,
    PROMPTS,
    SEED,
    arm,
    calibration,
    key_of,
    small_survey,
)

CROWD = Crowd(strengths=[0.0, 0.0, 0.0])

# Forms --------------------------------------------------------------------------------------------


def trials_of(key, form):
    return [(key.trials[name], flip) for name, flip in form if key.trials[name].kind == "trial"]


@pytest.mark.parametrize("models", [2, 3])
def test_pairs_are_balanced(models: int) -> None:
    """Pairs in a form, pictures over forms and sides of both to within one."""
    settings = Settings(design="preference", people=12, trials=15, items=20)
    key = key_of(settings, models)
    shown: Counter = Counter()
    left: Counter = Counter()
    for form in key.forms:
        trials = trials_of(key, form)
        assert len(trials) == 15
        assert len({(one.group, one.item) for one, _ in trials}) == 15
        groups = Counter(one.group for one, _ in trials)
        assert max(groups.values()) - min(groups.values()) <= (15 % len(key.groups) > 0)
        for number, group in enumerate(key.groups):
            sides = [
                (one.arms[::-1] if flip else one.arms)[0] == group.arms[0]
                for one, flip in trials
                if one.group == number
            ]
            assert abs(2 * sum(sides) - len(sides)) <= 2
        for one, flip in trials:
            shown[one.group, one.item] += 1
            first = (one.arms[::-1] if flip else one.arms)[0]
            left[one.group, one.item] += first == key.groups[one.group].arms[0]
    assert len(shown) == 20 * len(key.groups)
    assert max(shown.values()) - min(shown.values()) <= 1
    assert all(abs(2 * left[unit] - count) <= 1 for unit, count in shown.items())


SHAPES = [
    ("preference", 2, 20, 20),
    ("preference", 3, 7, 3),
    ("preference", 5, 33, 4),
    ("real", 1, 23, 12),
    ("real", 2, 42, 22),
    ("real", 3, 39, 21),
    ("real", 3, 40, 21),
    ("real", 5, 38, 20),
    ("likert", 2, 11, 3),
    ("caption", 3, 8, 3),
]


@pytest.mark.parametrize(("design", "models", "trials", "items"), SHAPES)
def test_nobody_is_asked_the_same_twice(
    design: str, models: int, trials: int, items: int, refused
) -> None:
    """Over 60 forms from five seeds; and one trial more than `most_trials` is refused."""
    settings = Settings(design=design, people=12, trials=trials, items=items)
    for seed in range(5):
        for form in key_of(settings, models, seed).forms:
            assert len({name for name, _ in form}) == len(form)
    groups = groups_of(design_of(design), models)
    most = most_trials(groups, items)
    assert trials <= most
    full = Settings(design=design, people=12, trials=most, items=items)
    for form in key_of(full, models).forms:
        assert len({name for name, _ in form}) == len(form)
    with pytest.raises(InputError, match="nobody is asked"):
        key_of(Settings(design=design, people=12, trials=most + 1, items=items), models)


@pytest.mark.parametrize(("models", "trials"), [(4, 6), (5, 10), (5, 30), (3, 9)])
def test_sides_are_balanced_in_each_form(models: int, trials: int) -> None:
    """Where a form has as many trials of each pair, the first model of its pair is on the left in
    half of them, to within one."""
    for seed in range(5):
        key = key_of(Settings(design="preference", people=9, trials=trials, items=40), models, seed)
        for form in key.forms:
            left = sum(
                (one.arms[::-1] if flip else one.arms) == key.groups[one.group].arms
                for one, flip in trials_of(key, form)
            )
            assert abs(2 * left - trials) <= 1


def test_half_of_the_pictures_are_real() -> None:
    key = key_of(Settings(design="real", people=6, trials=16, items=12), 2)
    for form in key.forms:
        arms = Counter(one.arms[0] for one, _ in trials_of(key, form))
        assert arms == {0: 4, 1: 4, 2: 8}


@pytest.mark.parametrize("design", DESIGNS)
def test_practice_comes_first_and_checks_are_spread(design: str) -> None:
    key = key_of(Settings(design=design, people=20, trials=20, items=20, attention=4), 2)
    places = []
    for form in key.forms:
        kinds = [key.trials[name].kind for name, _ in form]
        assert kinds[:2] == ["practice"] * 2
        assert Counter(kinds) == {"practice": 2, "trial": 20, "attention": 4}
        checks = [place for place, kind in enumerate(kinds) if kind == "attention"]
        places += checks
        assert all(b - a > 1 for a, b in pairwise(checks))
        assert checks[0] < 9
        assert checks[-1] > 17
    assert len(set(places)) > 10
    used = {one.item for one in key.trials.values() if one.kind == "trial"}
    others = {one.item for one in key.trials.values() if one.kind != "trial"}
    assert not used & others


def test_questions_come_in_blocks_either_first() -> None:
    key = key_of(Settings(design="likert", people=20, trials=12, items=12), 2)
    firsts = set()
    for form in key.forms:
        questions = [one.question for one, _ in trials_of(key, form)]
        assert questions == sorted(questions, reverse=questions[0] == 1)
        assert Counter(questions) == {0: 6, 1: 6}
        firsts.add(questions[0])
    assert firsts == {0, 1}


def test_the_right_caption_is_anywhere() -> None:
    key = key_of(Settings(design="caption", people=4, trials=16, items=16), 2)
    right = Counter(one.right for one in key.trials.values() if one.kind == "trial")
    assert set(right.values()) == {8}
    for one in key.trials.values():
        assert one.values[one.right] == 1.0
        assert sum(one.values) == 1.0


def test_the_key_is_its_owners(tmp_path: Path) -> None:
    small_survey(tmp_path / "s", "preference")
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "s", *(tmp_path / "s").iterdir())
    }
    assert modes == {"s": 0o700, "key.json": 0o600, "public": 0o755}
    for path in (tmp_path / "s" / "public").rglob("*.*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_seed_gives_the_same_survey(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        small_survey(tmp_path / name, "preference", seed=seed)
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / name / "public").rglob("*.*")}
        for name in "abc"
    ]
    assert files[0] == files[1]
    assert not set(files[0]) & set(files[2]) - {"index.html", "survey.js", "survey.css", "plan.js"}
    assert files[0]["plan.js"] != files[2]["plan.js"]


@pytest.mark.parametrize(
    ("design", "models", "size"),
    [("preference", 1, {}), ("preference", 2, {"trials": 13}), ("likert", 3, {"trials": 5})],
)
def test_sizes_that_do_not_fit(design, models, size, tmp_path: Path, refused) -> None:
    with refused(InputError):
        small_survey(tmp_path / "s", design, models=models, **size)
    assert not (tmp_path / "s").exists()


def test_captions_that_are_missing(tmp_path: Path, refused, warned) -> None:
    settings = Settings(design="fit", people=2, trials=4, items=4)
    both = [arm("a", 9), arm("b", 9, prompts=["another"])]
    with refused(InputError):
        build_survey(both, settings, tmp_path / "s", seed=0)
    with refused(InputError):
        build_survey([both[0], arm("c", 9, prompts=None)], settings, tmp_path / "s", seed=0)
    with warned(DataWarning):
        blind = Settings(design="preference", people=2, trials=4, items=4)
        build_survey(both, blind, tmp_path / "blind", seed=0)
    few = Settings(design="caption", people=2, trials=4, items=4)
    with refused(InputError):
        build_survey([arm("a", 9, prompts=PROMPTS[:3])], few, tmp_path / "s", seed=0)
    with refused(InputError):
        build_survey([arm("a", 9)], Settings(design="real", items=4), tmp_path / "s", seed=0)
    with refused(InputError):
        design_of("prefrence")


# What the public may see --------------------------------------------------------------------------


def chunks(png: bytes) -> set[str]:
    found, place = set(), 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        found.add(png[place + 4 : place + 8].decode())
        place += 12 + length
    return found


@pytest.mark.parametrize("design", DESIGNS)
def test_nothing_in_the_folder_tells_whose_a_picture_is(design: str, tmp_path: Path) -> None:
    key = small_survey(tmp_path / "s", design)
    public = tmp_path / "s" / "public"
    content = b"".join(
        path.read_bytes() + str(path.relative_to(public)).encode()
        for path in public.rglob("*")
        if path.is_file()
    )
    for secret in (*NAMES, "secretphotos", str(SEED), "attention", "scrambled"):
        assert secret.encode() not in content.lower()
    shows = DESIGNS[design].shows != "nothing"
    assert (b"secretprompt" in content) == shows
    for path in (public / "pictures").iterdir():
        assert re.fullmatch(r"[0-9a-f]{16}\.png", path.name)
        assert chunks(path.read_bytes()) == {"IHDR", "IDAT", "IEND"}
    assert {path.stat().st_mtime for path in public.rglob("*.*")} == {0}
    assert read_key(tmp_path / "s").trials == key.trials


def test_pictures_are_those_of_the_key(tmp_path: Path) -> None:
    """Pixel for pixel, and a scrambled one has the same pixels in another order."""
    small_survey(tmp_path / "s", "preference")
    key = json.loads((tmp_path / "s" / "key.json").read_text())["about"]["pictures"]
    arms = {name: arm(name, 17).images for name in NAMES[:2]}
    seen = Counter()
    for name, whose in key.items():
        with Image.open(tmp_path / "s" / "public" / "pictures" / f"{name}.png") as image:
            pixels = torch.from_numpy(np.asarray(image).copy())
        seen[whose["arm"]] += 1
        if whose["arm"] == "scrambled":
            first = arms[NAMES[0]][whose["item"], 0]
            assert not torch.equal(pixels, first)
            assert torch.equal(pixels.flatten().sort().values, first.flatten().sort().values)
        else:
            assert torch.equal(pixels, arms[whose["arm"]][whose["item"], 0])
    assert seen["scrambled"] == 3


def test_which_is_stored_first_says_nothing() -> None:
    key = key_of(Settings(design="preference", people=2, trials=10, items=200), 2)
    first = [one.arms[0] for one in key.trials.values() if one.kind == "trial"]
    assert 70 <= sum(first) <= 130  # 200 draws: four standard deviations are 28


def test_pictures_of_two_sizes_are_made_alike(tmp_path: Path, refused) -> None:
    from dataclasses import replace

    small, large = arm("a", 9), arm("b", 9)
    colour = replace(large, images=torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8))
    settings = Settings(design="preference", people=1, trials=4, items=4)
    build_survey([small, colour], settings, tmp_path / "s", seed=0)
    for path in (tmp_path / "s" / "public" / "pictures").iterdir():
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((16, 16), "RGB")
    wide = replace(large, images=torch.zeros((9, 1, 8, 16), dtype=torch.uint8))
    with refused(InputError):
        build_survey([small, wide], settings, tmp_path / "t", seed=0)


def as_told(settings: Settings, models: int, value) -> tuple:
    """A key and everyone's answers, each worth `value(person, trial)`."""
    key = key_of(settings, models)
    sessions = []
    for person, form in enumerate(key.forms):
        rows = []
        for number, (name, flip) in enumerate(form):
            values = key.trials[name].values
            place = values.index(value(person, key.trials[name]))
            rows.append(Answer(number, name, len(values) - 1 - place if flip else place, 900))
        sessions.append(Session(f"person{person:02d}", person, rows))
    return key, sessions


def bare(design: str, people: int, trials: int, items: int) -> Settings:
    return Settings(
        design=design, people=people, trials=trials, items=items, practice=0, attention=0
    )


def test_pictures_of_one_shape_are_scaled_together() -> None:
    """By the longer side: 640x480 to 512x384, and 320x240 of another arm too; a flat grey stays."""
    from dataclasses import replace

    large = replace(arm("a", 1), images=torch.full((1, 1, 480, 640), 90, dtype=torch.uint8))
    small = replace(arm("b", 1), images=torch.full((1, 3, 240, 320), 90, dtype=torch.uint8))
    for [image] in alike([large, small]) + alike([small, large]):
        assert image.shape == (3, 384, 512)
        assert (image == 90).all()
    [[kept]] = alike([small])
    assert torch.equal(kept, small.images[0])


# Intervals ----------------------------------------------------------------------------------------


def crossed_answers(rng, people=25, items=30) -> Answers:
    """Two groups with spreads of people and items; a third of the answers are missing."""
    person, item = (of.ravel() for of in np.meshgrid(range(people), range(items), indexing="ij"))
    group = rng.integers(2, size=person.size)
    value = rng.normal(size=people)[person] + rng.normal(size=items)[item]
    value = value + rng.normal(size=person.size) + group
    kept = rng.random(person.size) < 0.67
    return Answers(person[kept], item[kept], group[kept], value[kept], 2)


def by_clusters(answers: Answers, group: int) -> float:
    """The standard error of a mean clustered by person and by item: a second implementation, by
    Cameron, Gelbach and Miller's formula."""
    own = answers.group == group
    off = (answers.value - answers.value[own].mean()) * own

    def part(labels: np.ndarray) -> float:
        _, place = np.unique(labels, return_inverse=True)
        sums = np.bincount(place, off)
        return float((sums**2).sum() * len(sums) / (len(sums) - 1))

    cells = float((off**2).sum())
    sizes = [len(np.unique(of)) for of in (answers.person, answers.item)]
    noise = cells * np.prod([size / (size - 1) for size in sizes])
    total = part(answers.person) + part(answers.item) - noise
    return math.sqrt(total) / own.sum()


def test_errors_are_those_of_two_way_clusters() -> None:
    rng = np.random.default_rng(0)
    answers = crossed_answers(rng)
    found = crossed_bootstrap(answers, resamples=20_000, rng=rng)
    assert found.value == pytest.approx(
        [answers.value[answers.group == group].mean() for group in range(2)]
    )
    expected = [by_clusters(answers, group) for group in range(2)]
    assert found.error == pytest.approx(expected, rel=0.04)


def test_limits_and_p_values_agree() -> None:
    """The p-value of a limit is 0.05, by Student's t of scipy."""
    from scipy.stats import t

    found = Crossed(np.array([0.62]), np.array([0.05]), np.array([17.0]))
    low, high = found.limits()
    assert [low[0], high[0]] == pytest.approx(t(17, 0.62, 0.05).interval(0.95))
    for share in (False, True):
        for limit in found.limits(share=share):
            assert found.p_values(limit[0], share=share) == pytest.approx([0.05])


@pytest.mark.parametrize(
    "size",
    [
        Settings(design="preference", people=30, trials=40, items=40),
        Settings(design="likert", people=20, trials=40, items=30),
    ],
)
def test_calibration(size: Settings) -> None:
    """Of 400 surveys without an effect: within 3.5 standard deviations of the bar's 3 to 7 %."""
    found = calibration(size, CROWD, surveys=400, resamples=100)
    assert 0.01 <= found["found"] <= 0.10, found
    assert found["coverage"] >= 0.90, found
    if size.design == "preference":
        assert found["naive"] > 0.2, found


SIZES = {
    "pairs": Settings(design="preference", people=30, trials=40, items=40),
    "ties": Settings(design="preference", people=30, trials=40, items=40, ties=True),
    "parts": Settings(design="preference", people=40, trials=30, items=60),
    "real": Settings(design="real", people=30, trials=60, items=40),
    "captions": Settings(design="caption", people=30, trials=40, items=40),
    "likert": Settings(design="likert", people=30, trials=60, items=30),
}


SMALL = {
    "2 models, 10 people, 10 trials, 10 pairs": (2, bare("preference", 10, 10, 10)),
    "5 models, 15 people, 20 trials, 40 pairs": (5, bare("preference", 15, 20, 40)),
    "5 models, 10 people, 10 trials, 40 pairs": (5, bare("preference", 10, 10, 40)),
    "likert, 2 models, 10 people, 10 trials": (2, bare("likert", 10, 10, 40)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("gap", [0.0, 0.8])
def test_calibration_of_small_surveys(name: str, gap: float) -> None:
    """Over 2,000 crowds false positives are at most nominal, and coverage is at least nominal but
    for four standard deviations."""
    models, settings = SMALL[name]
    crowd = Crowd(strengths=[gap / 2, -gap / 2, 0.0, 0.0, 0.0][:models])
    found = calibration(settings, crowd, surveys=2_000, models=models)
    print(name, gap, found)
    assert found["coverage"] >= 0.93
    if gap == 0.0:
        assert found["found"] <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("gap", [0.0, 0.8])
def test_calibration_over_2000_crowds(name: str, gap: float) -> None:
    """False positives at nominal 5 % within 3 to 7 %, coverage within 93 to 97 %."""
    crowd = Crowd(strengths=[gap / 2, -gap / 2, 0.5])
    found = calibration(SIZES[name], crowd, surveys=2_000)
    print(name, gap, found)
    assert 0.93 <= found["coverage"] <= 0.97
    if gap == 0.0:
        assert 0.03 <= found["found"] <= 0.07
        assert found["naive"] > (0.2 if SIZES[name].design == "preference" else 0.06)


def test_nothing_that_is_drawn_is_certain() -> None:
    """One person has no error, and neither have answers that all agree."""
    one = Answers(*(np.zeros(5, int) for _ in range(3)), np.ones(5), 1)
    person, item = (of.ravel() for of in np.meshgrid(range(8), range(10)))
    agreed = Answers(person, item, np.zeros(80, int), np.full(80, 0.1), 1)
    for answers in (one, agreed):
        found = crossed_bootstrap(answers, rng=np.random.default_rng(0))
        assert np.isnan([found.error, found.p_values(), *found.limits(share=True)]).all()
    with pytest.raises(ValueError, match="no answers"):
        crossed_bootstrap(agreed.where(agreed.value < 0), rng=np.random.default_rng(0))


def test_independent_answers() -> None:
    """Group 0: 6 people, 4 pictures, all of both: 4. Group 1: one person saw 9 pictures and the
    others one of them: 2, though 6 people and 9 pictures are there. Group 2: one answer."""
    rows = [(person, item, 0) for person in range(6) for item in range(4)]
    rows += [(0, item, 1) for item in range(9)] + [(person, 8, 1) for person in range(1, 6)]
    table = np.array([*rows, (3, 3, 2)]).T
    answers = Answers(*table, np.ones(table.shape[1]), 3)
    assert independent_answers(answers).tolist() == [4, 2, 1]


@pytest.mark.parametrize("units", range(2, 12))
def test_exact_limits_and_the_sign_test_agree(units: int) -> None:
    """Clopper and Pearson's of scipy, the binomial test of scipy; the interval leaves 1/2 out
    where the test finds something."""
    from scipy.stats import binomtest

    every = binomtest(units, units, 0.5)
    known = every.proportion_ci(0.95, method="exact")
    assert exact_limits(1.0, units) == pytest.approx((known.low, known.high))
    assert exact_limits(0.0, units) == pytest.approx((1 - known.high, 1 - known.low))
    assert sign_test(units) == pytest.approx(every.pvalue)
    assert (exact_limits(1.0, units)[0] > 0.5) == (sign_test(units) < 0.05)


def plainly(one: ResultOf) -> tuple:
    return one.estimate.value, one.estimate.low, one.estimate.high, one.p_value, one.adjusted


def test_two_people_who_agree_are_no_proof() -> None:
    """Two independent answers: 0.025^(1/2) to 1 and 2 * 2^-2. Levels and differences that nothing
    varies have neither interval nor p-value, and strengths that only the prior bounds."""
    agreed = as_told(bare("preference", 2, 2, 2), 2, lambda person, one: 1.0)
    [share] = analyse(*agreed).everyone.results["means"]
    assert plainly(share) == pytest.approx((1.0, 0.025**0.5, 1.0, 0.5, 0.5))
    three = as_told(bare("preference", 2, 3, 2), 3, lambda person, one: 1.0)
    for one in analyse(*three).everyone.results["strengths"]:
        assert plainly(one)[1:] == (None,) * 4
    levels = as_told(bare("likert", 2, 4, 2), 2, lambda person, one: 5.0 - one.arms[0])
    found = analyse(*levels).everyone.results
    assert [plainly(one) for one in found["means"]] == [
        (5.0, *(None,) * 4),
        (4.0, *(None,) * 4),
    ] * 2
    assert {plainly(one) for one in found["differences"]} == {(1.0, *(None,) * 4)}
    dense = as_told(bare("likert", 3, 8, 2), 2, lambda person, one: 5.0 - one.arms[0])
    agreement = analyse(*dense).everyone.agreement["creativity"]
    assert (agreement.value, agreement.low, agreement.high) == (1.0, None, None)
    told = as_told(bare("real", 2, 4, 2), 2, lambda person, one: float(one.arms[0] == 2))
    found = analyse(*told).everyone.results
    assert {plainly(one)[1:] for kind in ("errors", "differences") for one in found[kind]} == {
        (None,) * 4
    }


def test_a_difference_from_a_unanimous_group_has_its_uncertainty() -> None:
    """The error is that of the other group and, of the unanimous one, the reach of its exact
    interval in standard deviations."""
    settings = bare("caption", 12, 24, 12)
    told = as_told(
        settings, 2, lambda person, one: float(one.arms[0] == 0 or (person + one.item) % 3 > 0)
    )
    key, sessions = told
    answers = answers_of(key, sessions)
    hidden = hidden_variances(answers, share=True)
    assert hidden == pytest.approx([((1 - 0.025 ** (1 / 12)) / 1.959964) ** 2, 0.0])
    assert np.isnan(hidden_variances(answers, share=False)).tolist() == [True, False]

    def crossed(statistic) -> Crossed:
        return crossed_bootstrap(answers, statistic, rng=np.random.default_rng(0))

    def drop(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return -means(totals, counts)[..., 1:]

    [found] = differences_of(key, answers, crossed)
    alone = crossed(drop)
    error = math.hypot(alone.error[0], math.sqrt(hidden[0]))
    wide = Crossed(np.array([found.estimate.value]), np.array([error]), alone.df)
    assert found.estimate.interval == pytest.approx([limit[0] for limit in wide.limits()])
    assert found.p_value == pytest.approx(wide.p_values()[0])


def test_units_are_those_of_the_group() -> None:
    """Of ten people one answered about the first pair, once: that says nothing, though all of its
    answers agree."""
    key, sessions = as_told(bare("preference", 10, 10, 10), 5, lambda person, one: 1.0)
    [place] = [n for n, (name, _) in enumerate(key.forms[0]) if key.trials[name].group == 0]
    others = [
        Session(one.name, one.form, [a for a in one.answers if key.trials[a.trial].group])
        for one in sessions
    ]
    others[0].answers.append(sessions[0].answers[place])
    first, second = analyse(key, others).everyone.results["means"][:2]
    assert plainly(first) == pytest.approx((1.0, 0.025, 1.0, 1.0, 1.0))
    assert plainly(second)[:4] == pytest.approx((1.0, 0.025**0.1, 1.0, 2.0**-9))


def test_connected_strengths() -> None:
    """Ford 1957: of three models in a ring each has a finite strength; not where one never wins."""
    ring = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert is_connected(ring)
    assert not is_connected(np.triu(np.ones((3, 3)), 1))


def test_holm() -> None:
    """Holm's own procedure: 0.01, 0.04 and 0.03 of three."""
    from sfumato.evaluation.metrics.intervals import Estimate

    results = [
        ResultOf(title="", estimate=Estimate(value=0), p_value=p) for p in (0.01, 0.04, 0.03)
    ]
    assert [one.adjusted for one in holm(results)] == pytest.approx([0.03, 0.06, 0.06])
    unknown = ResultOf(title="", estimate=Estimate(value=0))
    assert [one.adjusted for one in holm([results[0], unknown])] == [0.02, None]


# Strengths and agreement --------------------------------------------------------------------------


def minorise(wins: np.ndarray, steps: int = 5_000) -> np.ndarray:
    """Bradley-Terry by Hunter's MM (2004): another algorithm, without a prior."""
    played, worth = wins + wins.T, np.ones(len(wins))
    for _ in range(steps):
        worth = wins.sum(1) / (played / (worth[:, None] + worth[None])).sum(1)
    return np.log(worth) - np.log(worth).mean()


def test_bradley_terry() -> None:
    rng = np.random.default_rng(1)
    wins = rng.integers(5, 60, (6, 4, 4)).astype(float)
    wins[:, range(4), range(4)] = 0
    found = bradley_terry(wins)
    assert np.abs(found.sum(-1)).max() < 1e-9
    for one, own in zip(found, wins, strict=True):
        assert one == pytest.approx(minorise(own), abs=2e-3)
    two = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    assert two[0] - two[1] == pytest.approx(math.log(3), abs=5e-3)
    never = bradley_terry(np.array([[0.0, 30.0], [0.0, 0.0]]))
    assert 5 < never[0] - never[1] < 4 * PRIOR


def test_krippendorff() -> None:
    """Krippendorff 2011: example A (two observers, binary: 0.095) and example C (four observers
    with gaps, interval: 0.849)."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    unit = np.tile(np.arange(10), 2)
    assert krippendorff_alpha(unit, np.array(first + second)) == pytest.approx(0.095, abs=5e-4)
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    pairs = [(u, v) for row in table for u, v in enumerate(row) if v is not None]
    units, values = (np.array(of) for of in zip(*pairs, strict=True))
    assert krippendorff_alpha(units, values) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(unit, np.tile(first, 2)) == 1.0
    assert math.isnan(krippendorff_alpha(unit, np.ones(20)))


# A crowd with a known truth -----------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_a_large_crowd_is_as_it_should_be(design: str) -> None:
    """Means over 60 crowds of 60 people are the true ones within four standard errors."""
    settings = Settings(design=design, people=60, trials=24, items=24, ties=design == "preference")
    key = key_of(settings, 2)
    crowd = Crowd(strengths=[0.5, -0.5, 1.0], person_sd=0.6, item_sd=0.7)
    asked, rng = Asked.of(key), np.random.default_rng(3)
    found = []
    for _ in range(60):
        answers = simulated_answers(key, asked, crowd, rng)
        totals, counts = answers.tables()
        found.append(means(totals.sum((1, 2)), counts.sum((1, 2))))
    error = np.std(found, axis=0, ddof=1) / math.sqrt(60)
    assert (np.abs(np.mean(found, axis=0) - true_means(key, crowd)) < 4 * error).all()


def test_sessions_and_arrays_are_the_same_crowd() -> None:
    key = key_of(Settings(design="preference", people=300, trials=20, items=20, ties=True), 3)
    crowd = Crowd(strengths=[1.0, 0.0, -0.5])
    sessions = answers_of(key, simulate(key, crowd, np.random.default_rng(0)))
    arrays = simulated_answers(key, Asked.of(key), crowd, np.random.default_rng(0))
    assert len(sessions) == len(arrays) == 6000
    for group in range(3):
        both = [one.value[one.group == group].mean() for one in (sessions, arrays)]
        assert both[0] == pytest.approx(both[1], abs=0.05)
    assert (sessions.item == arrays.item).all()
    assert (sessions.group == arrays.group).all()


def test_expected_means_in_closed_form() -> None:
    """Without spreads they are logistic; by symmetry an even pair is a half."""
    sharp = Crowd(strengths=[0, 0], person_sd=0, item_sd=0, tie=0.4)
    pair, ties = (Settings(design="preference", ties=ties) for ties in (False, True))
    design = design_of("preference")
    assert expected_mean(design, pair, sharp, 1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    both = (1 / (1 + math.exp(-0.6)) + 1 / (1 + math.exp(-1.4))) / 2
    assert expected_mean(design, ties, sharp, 1.0) == pytest.approx(both)
    wide = Crowd(strengths=[0, 0], person_sd=2, item_sd=1)
    assert expected_mean(design, pair, wide, 0.0) == pytest.approx(0.5)
    caption = design_of("caption")
    assert expected_mean(caption, Settings(design="caption"), wide, -60) == pytest.approx(0.25)


# Analysis -----------------------------------------------------------------------------------------


def test_exclusions_before_and_after() -> None:
    key = key_of(Settings(design="preference", people=40, trials=30, items=30), 2)
    crowd = Crowd(strengths=[1.5, -1.5], careless=0.3, leaving=0.1)
    sessions = simulate(key, crowd, np.random.default_rng(5))
    found = analyse(key, sessions, resamples=200)
    assert found.everyone.people == 40
    assert found.kept.people + len(found.excluded) == 40
    assert 6 <= len(found.excluded) <= 25
    kept, every = (of.results["means"][0].estimate.value for of in (found.kept, found.everyone))
    assert kept == pytest.approx(true_means(key, crowd)[0], abs=0.05)
    assert every < kept - 0.03
    again = analyse(key, sessions, resamples=200)
    assert again.kept.plain() == found.kept.plain()


def test_each_rule() -> None:
    key = key_of(Settings(design="preference", people=1, trials=20, items=20), 2)
    form = key.forms[0]

    def person(choose, ms=900, length=25) -> Session:
        rows = enumerate(form[:length])
        return Session("x", 0, [Answer(n, name, choose(n, name, f), ms) for n, (name, f) in rows])

    def careful(n, name, flip) -> int:
        values = key.trials[name].values
        best = int(np.argmax(values)) if key.trials[name].kind == "attention" else n % 2
        return len(values) - 1 - best if flip and key.trials[name].kind == "attention" else best

    assert reasons(key, person(careful), Rules()) == []
    assert reasons(key, person(lambda *_: 0), Rules())[-1].startswith("the same place in 20 of 20")
    wrong = person(lambda n, name, f: 1 - careful(n, name, f))
    assert reasons(key, wrong, Rules()) == ["attention checks: 0 of 3 right"]
    assert reasons(key, person(careful, ms=120), Rules()) == ["median time 120 ms"]
    assert "of 20 trials answered" in reasons(key, person(careful, length=9), Rules())[-1]
    assert reasons(key, person(careful, length=2), Rules()) == ["no answers"]


@pytest.mark.parametrize(
    ("design", "kinds"),
    [
        ("preference", ["means", "strengths"]),
        ("real", ["means", "errors", "differences"]),
        ("caption", ["means", "differences"]),
        ("likert", ["means", "differences"]),
    ],
)
def test_results_hold_the_truth(design: str, kinds: list[str]) -> None:
    """Of a crowd without much noise; HYPE's error is half of the fooled and half of the doubted."""
    settings = Settings(design=design, people=60, trials=60, items=60)
    models = 3 if design == "preference" else 2
    key = key_of(settings, models)
    strengths = [0.8, -0.2, 1.2] if design == "real" else [0.8, 0.0, -0.8]
    crowd = Crowd(strengths=strengths[: len(key.arms)], person_sd=0.3, item_sd=0.3)
    found = analyse(key, simulate(key, crowd, np.random.default_rng(11)), resamples=300).kept
    assert list(found.results) == kinds
    truth = true_means(key, crowd)
    outside = 0
    for one, true in zip(found.results["means"], truth, strict=True):
        low, high = one.estimate.interval
        assert low - 0.5 * (high - low) < true < high + 0.5 * (high - low)
        outside += not low <= true <= high
    assert outside <= 1
    if design == "real":
        errors = [(truth[arm] + 1 - truth[2]) / 2 for arm in range(2)]
        values = [one.estimate.value for one in found.results["errors"]]
        assert values == pytest.approx(errors, abs=0.05)
    if design == "preference":
        order = [one.estimate.value for one in found.results["strengths"]]
        assert order == sorted(order, reverse=True)
        assert sum(order) == pytest.approx(0)


# Power --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("design", "size"), [("preference", 0.6), ("real", 0.1), ("likert", 0.5)])
def test_a_crowd_has_the_effect(design: str, size: float, refused) -> None:
    settings = Settings(design=design)
    crowd = crowd_with(design_of(design), settings, Effect(size=size))
    true = true_means(key_of(settings, 2), crowd)
    assert (true[0] if design == "preference" else true[0] - true[1]) == pytest.approx(size)
    for wrong in (0.0, 7.0):
        with refused(InputError):
            crowd_with(design_of(design), settings, Effect(size=wrong))


def test_power_grows(refused) -> None:
    settings = Settings(design="preference", items=10)
    small, large = (
        power_of(
            Settings(design="preference", people=n, trials=10, items=10),
            Effect(size=0.75),
            surveys=60,
        ).found.value
        for n in (5, 30)
    )
    assert small < large
    sizes = power_table(settings, Effect(size=0.8), 0.8, surveys=40)
    assert {one.trials for one in sizes} == {10}
    found = smallest(sizes, 0.8)
    assert found == sizes[-1]
    with refused(InputError):
        smallest(sizes[:1], 1.1)


@pytest.mark.parametrize("design", ["preference", "real"])
def test_power_is_that_of_the_analysis(design: str) -> None:
    """The share of the surveys of a crowd whose first result `findings` finds, adjusted for all."""
    settings, effect = bare(design, 12, 20, 20), Effect(size=0.75, models=3)
    if design == "real":
        effect = Effect(size=0.4, models=3)
    seed = derived_seed("power", 0, settings.people, settings.trials, settings.items)
    rng = np.random.default_rng(seed)
    crowd = crowd_with(design_of(design), settings, effect)
    layout = make_layout(design_of(design), 3, settings, rng)
    names = [str(number) for number in range(len(layout.trials))]
    key = Key.of(layout, [str(arm) for arm in range(len(crowd.strengths))], names, "power")
    adjusted = alone = 0
    for _ in range(40):
        answers = simulated_answers(key, Asked.of(key), crowd, rng)

        def crossed(statistic, answers=answers) -> Crossed:
            return crossed_bootstrap(answers, statistic, resamples=200, rng=rng)

        if design == "preference":
            p_values = crossed(means).p_values(0.5, share=True)
        else:
            p_values = np.array([one.p_value for one in differences_of(key, answers, crossed)])
        # Holm's procedure by hand: each below the last is compared with a larger bound.
        order = np.argsort(p_values)
        below = p_values[order] < 0.05 / np.arange(len(p_values), 0, -1)
        stop = len(below) if below.all() else int(np.argmin(below))
        adjusted += 0 in order[:stop]
        alone += p_values[0] < 0.05
    found = power_of(settings, effect, surveys=40).found
    assert found.successes == adjusted
    assert 10 <= adjusted < alone


def test_power_of_what_is_given(refused) -> None:
    """Only sizes with it are tried; one that cannot reach the power is refused."""
    settings, effect = Settings(design="preference", items=20), Effect(size=0.75)
    people = power_table(settings, effect, 0.99, surveys=10, given=Given(people=9))
    assert [(one.people, one.trials) for one in people] == [(9, 10), (9, 20)]
    trials = power_table(settings, effect, 0.5, surveys=10, given=Given(trials=13))
    assert {one.trials for one in trials} == {13}
    both = Given(people=9, trials=13)
    assert len(power_table(settings, effect, 0.99, surveys=10, given=both)) == 1
    with refused(InputError):
        smallest(people, 1.1, Given(people=9))
    with refused(InputError):
        smallest(people, 1.1, both)
    few = power_table(Settings(design="preference", items=5), effect, 0.0, surveys=2)
    assert [one.trials for one in few] == [5]  # fewer than any number that is tried else
    many = power_table(
        Settings(design="preference", items=5), Effect(size=0.75, models=6), 0.0, surveys=2
    )
    assert min(one.trials for one in many) >= 15  # as many pairs


# Files and the command ----------------------------------------------------------------------------


def test_answers_of_files(tmp_path: Path, refused) -> None:
    key = small_survey(tmp_path / "s", "preference")
    with refused(InputError):
        read_sessions(tmp_path / "s", key)
    session = simulate(key, Crowd(strengths=[0, 0]), np.random.default_rng(0))[0]
    good = returned(session, key.survey)
    back = tmp_path / "back"
    back.mkdir()
    (back / "answers-a.json").write_text(json.dumps({**good, "answers": good["answers"][:3]}))
    (back / "answers-a (1).json").write_text(json.dumps(good))
    assert read_sessions(tmp_path / "s", key, [back]) == [session]
    number, trial, choice, ms = good["answers"][0]
    for wrong in (
        {"survey": "another"},
        {"form": 99},
        {"form": True},
        {"session": 5},
        {"session": "\ud800" * 10},
        {"answers": [[number, trial, 7, ms]]},
        {"answers": [[number, "another", choice, ms]]},
        {"answers": [[number, trial, choice]]},
        {"answers": [[str(number), trial, choice, ms]]},
    ):
        (tmp_path / "wrong.json").write_text(json.dumps({**good, **wrong}))
        with refused(InputError):
            read_sessions(tmp_path / "s", key, [tmp_path / "wrong.json"])
    for text in ("", "[]", "{}", "[" * 100_000):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(InputError):
            read_sessions(tmp_path / "s", key, [tmp_path / "wrong.json"])


def test_practice_alone_says_nothing(refused) -> None:
    key, [one] = as_told(
        Settings(design="preference", people=1, trials=4, items=4), 2, lambda *_: 1.0
    )
    with refused(InputError):
        analyse(key, [Session(one.name, one.form, one.answers[:2])])


def test_a_folder_that_is_no_survey(tmp_path: Path, refused) -> None:
    with refused(InputError):
        read_key(tmp_path)
    (tmp_path / "key.json").write_text("{}")
    with refused(DamagedDataError):
        read_key(tmp_path)


def test_subjects(small_run: Path, tmp_path: Path, refused) -> None:
    """A model and its pictures in a folder are the same arm; the same seeds and captions."""
    model = str(small_run)
    arms = arms_of([f"{model}@1", f"{model}@2"], count=3, device="cpu")
    assert [one.name for one in arms] == ["small@1", "small@2"]
    assert arms[0].prompts == arms[1].prompts
    assert arms[0].images.shape == (3, 1, 8, 8)
    assert not torch.equal(arms[0].images, arms[1].images)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in range(12):
        Image.fromarray(np.full((8, 8), place, np.uint8)).save(folder / f"{place:02d}.png")
    found = arms_of([str(folder)], count=12)[0]
    assert found.images[:, 0, 0, 0].tolist() == list(range(12))
    assert found.prompts is None
    with refused(InputError):
        arms_of([str(folder)], count=13)
    with refused(InputError):
        arms_of([model, model], count=3)


def test_real_images(tmp_path: Path, refused) -> None:
    """Those of a data source and those of a folder, in the size of the model's."""
    like = arm("a", 4)
    digits = real_arm("digits", like, 5, REAL)
    assert digits.images.shape == (5, 1, 8, 8)
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(12):
        Image.fromarray(np.full((20, 30), 10 * place, np.uint8)).save(folder / f"{place:02d}.png")
    photos = real_arm(str(folder), like, 12, REAL)
    assert photos.images.flatten(1).tolist() == [[10 * place] * 64 for place in range(12)]
    with refused(InputError):
        real_arm(str(folder), like, 13, REAL)


def test_the_server_needs_no_torch() -> None:
    """It starts at once."""
    code = (
        "import sys; import sfumato.cli, sfumato.interactive.survey.key, "
        "sfumato.interactive.survey.answers, sfumato.interactive.survey.build; "
        "assert not {'torch', 'PIL', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commands(sfumato, small_run: Path, tmp_path: Path) -> None:
    """Build, simulate, analyse: the truth of the crowd is found again."""
    subjects = (f"{small_run}@1", f"{small_run}@3")
    size = ("--people", "20", "--trials", "20", "--count", "20", "--seed", "4", "--device", "cpu")
    built = sfumato("survey", "build", *subjects, *size, "--out", "s", cwd=tmp_path)
    assert built.code == 0, built.err
    assert "20 people answer 20 questions each" in built.out
    again = sfumato("survey", "build", *subjects, *size, "--out", "s", cwd=tmp_path)
    assert (again.code, "is not empty" in again.err) == (2, True)
    made = sfumato("survey", "simulate", "s", "--strength", "small@3=2", cwd=tmp_path)
    assert made.code == 0, made.err
    analysed = sfumato("survey", "analyse", "s", "crowd", "--resamples", "200", cwd=tmp_path)
    assert analysed.code == 0, analysed.err
    assert "20 people, 400 answers; 20 kept" in analysed.out
    card = json.loads((tmp_path / "s" / "analysis" / "analysis.json").read_text())
    truth = json.loads((tmp_path / "crowd" / "truth.json").read_text())["means"]
    [result] = card["kept"]["means"]
    assert result["estimate"]["low"] < truth[result["title"]] < result["estimate"]["high"]
    assert result["adjusted"] < 0.001
    page = (tmp_path / "s" / "analysis" / "analysis.html").read_text()
    assert "small@1 over small@3" in page
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", page)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "bundled:mnist", "--design", "prefer"), "No design named 'prefer'"),
        (("build", "bundled:mnist", "--design", "likert", "--ties"), "has no ties"),
        (("build", "bundled:mnist", "--consent", "nowhere.txt"), "cannot be read"),
        (("build", "bundled:mnist"), "compares models, and there is one"),
        (("build", "bundled:mnist", "nowhere"), "nowhere does not exist"),
        (("build", "bundled:mnist", "--design", "real"), "needs real images"),
        (("build", "bundled:mnist", "--design", "likert", "--real", "digits"), "no real images"),
        (("build", "bundled:mnist@1", "bundled:mnist", "--trials", "50"), "there are 40"),
        (("analyse", "nowhere"), "is no survey"),
        (("serve", "nowhere"), "is no survey"),
        (("simulate", "nowhere"), "is no survey"),
    ],
)
def test_mistakes(arguments, message: str, sfumato) -> None:
    found = sfumato("survey", *arguments)
    assert found.code == 2
    assert message in found.err
