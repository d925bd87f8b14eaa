"""`sfumato survey`: build, serve, analyse, simulate."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.errors import InputError
from sfumato.cli.checks import (
    check_server_packages,
    checked_device,
    checked_folder,
    checked_prompts,
)
from sfumato.cli.options import register
from sfumato.cli.show import check_empty, log, log_wrapped, new_table, print_table

if TYPE_CHECKING:
    from sfumato.interactive.survey.forms import Settings
    from sfumato.interactive.survey.pictures import Arm
    from sfumato.interactive.survey.power import Power

SurveyFolder = Annotated[
    Path, typer.Argument(metavar="SURVEY", help="A folder made by `sfumato survey build`.")
]


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """How large a survey is."""

    people: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Forms; more people begin again at one.")
    ] = None
    trials: Annotated[
        int | None, typer.Option(min=1, max=1_000, help="Questions that count, of each person.")
    ] = None
    count: Annotated[int, typer.Option(min=2, help="Pictures of each model.")] = 40
    practice: Annotated[int, typer.Option(min=0, max=20, help="Questions for practice.")] = 2
    attention: Annotated[int, typer.Option(min=0, max=20, help="Attention checks.")] = 3
    ties: Annotated[bool, typer.Option("--ties", help="Allow 'No difference'.")] = False

    def settings(self, design: str) -> "Settings":
        from sfumato.interactive.survey.designs import design_of
        from sfumato.interactive.survey.forms import Settings

        known = design_of(design)
        if self.ties and not known.pair:
            raise InputError(
                f"The design '{design}' has no ties.", hint="--ties is for two pictures."
            )
        given = {"people": self.people, "trials": self.trials}
        return Settings(
            design=design,
            items=self.count,
            practice=self.practice,
            attention=self.attention,
            ties=self.ties,
            **{name: value for name, value in given.items() if value is not None},
        )


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Where pictures come from, beside the subjects."""

    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", callback=checked_prompts, help="A caption; may be repeated."),
    ] = None
    real: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Real images of the design real.")
    ] = None
    device: Annotated[str, typer.Option(callback=checked_device, help="auto, cpu or cuda.")] = (
        "auto"
    )


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """The size by simulation."""

    power: Annotated[
        float | None,
        typer.Option(min=0.05, max=0.99, help="Simulate how many people and trials reach it."),
    ] = None
    effect: Annotated[
        float | None,
        typer.Option(help="To find: a share such as 0.6 of pairs, else a difference."),
    ] = None


def build(
    subjects: Annotated[
        list[str],
        typer.Argument(help="Models (PATH@3: w = 3), runs, folders of pictures or .npz files."),
    ],
    *,
    design: Annotated[
        str, typer.Option(help="preference, fit, real, caption or likert.")
    ] = "preference",
    pictures: PictureOptions,
    size: SizeOptions,
    simulated: PowerOptions,
    consent: Annotated[
        Path | None, typer.Option(help="A text file that people read and agree to.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of order, sides and names; else a secret one.")
    ] = None,
    out: Annotated[Path, typer.Option(callback=checked_folder, help="A new folder.")] = Path(
        "survey"
    ),
) -> None:
    """A survey of pictures for people: a page, and the key that stays with you."""
    from sfumato.interactive.survey.designs import REAL, design_of
    from sfumato.interactive.survey.forms import check_size

    check_empty(out)
    settings = size.settings(design)
    text = _consent(consent)
    _check_asked(subjects, settings, pictures.real)
    if simulated.power is not None:
        settings = _powered(settings, simulated, size, len(subjects))
    check_size(design_of(design), len(subjects), settings)
    from sfumato.interactive.survey.build import WORDS, build_survey
    from sfumato.interactive.survey.pictures import arms_of, real_arm

    arms = arms_of(
        subjects,
        count=settings.pictures,
        prompts=pictures.prompts or (),
        device=pictures.device,
    )
    settings = _with_captions(settings, arms)
    real = (
        None if pictures.real is None else real_arm(pictures.real, arms[0], settings.pictures, REAL)
    )
    words = WORDS if text is None else replace(WORDS, consent=text)
    key = build_survey(
        arms,
        settings,
        out,
        seed=secrets.randbits(63) if seed is None else seed,
        words=words,
        real=real,
    )
    log(
        f"{len(key.forms)} people answer {settings.trials} questions each, beside "
        f"{settings.practice} for practice and {settings.attention} attention checks."
    )
    log(f"Page    {out}/public/index.html (opens without a server; people return a file)")
    log(f"Key     {out}/key.json (keep it to yourself)")
    log(f"Serve   sfumato survey serve {out}")


def _consent(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        text = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read ({error}).", hint="Give a file of text."
        ) from error
    if not text:
        raise InputError(f"{file} is empty.", hint="Write what people agree to into it.")
    return text


def _with_captions(settings: "Settings", arms: "Sequence[Arm]") -> "Settings":
    """As many captions to choose from as there are, up to four."""
    distinct = {prompt for arm in arms for prompt in arm.prompts or ()}
    return replace(settings, captions=max(2, min(settings.captions, len(distinct))))


def _check_asked(subjects: "Sequence[str]", settings: "Settings", real: str | None) -> None:
    """What is wrong is said before anything is simulated or sampled."""
    from sfumato.interactive.survey.designs import design_of, groups_of
    from sfumato.interactive.survey.pictures import check_subjects

    check_subjects(subjects)
    design = design_of(settings.design)
    groups_of(design, len(subjects))
    if design.real and real is None:
        raise InputError("This design needs real images.", hint="Name them with --real SOURCE.")
    if real is not None and not design.real:
        raise InputError(
            f"The design '{design.name}' shows no real images.", hint="Leave --real out."
        )


def _powered(
    settings: "Settings", simulated: PowerOptions, size: SizeOptions, models: int
) -> "Settings":
    """With the fewest people and trials that find the effect; what is given stays, and the rest
    is looked for beside it."""
    from sfumato.interactive.survey.designs import design_of
    from sfumato.interactive.survey.power import (
        SURVEYS,
        Effect,
        Given,
        power_table,
        smallest,
        usual_size,
    )

    assert simulated.power is not None
    design = design_of(settings.design)
    effect = Effect(size=simulated.effect or usual_size(design), models=max(2, models))
    log_wrapped(
        f"{SURVEYS} simulated surveys of each size with an effect of {effect.size:g}, spreads of "
        f"{effect.person_sd:g} over people and {effect.item_sd:g} over pictures in log odds, and "
        f"{settings.items} pictures of each model:"
    )
    given = Given(people=size.people, trials=size.trials)
    sizes = power_table(settings, effect, simulated.power, given=given)
    _print_power(sizes)
    found = smallest(sizes, simulated.power, given)
    log(f"{found.people} people with {found.trials} trials each find it in {found.found}.")
    return replace(settings, people=found.people, trials=found.trials)


def _print_power(sizes: "Sequence[Power]") -> None:
    table = new_table(["trials", "people", "finds the effect"], left=())
    for one in sizes:
        table.add_row(str(one.trials), str(one.people), str(one.found))
    print_table(table)


def serve(
    survey: SurveyFolder,
    *,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 is this machine alone; others need a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Else 7879, or a free one.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Serve a survey; every answer is in SURVEY/answers.sqlite at once."""
    from sfumato.interactive.survey.key import read_key

    read_key(survey)
    check_server_packages("survey serve")
    from sfumato.interactive.serving import serve as serve_application
    from sfumato.interactive.survey.serve import place_of, survey_application

    place = place_of(survey, host, port)
    application = survey_application(survey, token=place.token)
    serve_application(
        application,
        place,
        browser=browser,
        started=lambda: log(f"Survey  {place.url}\nCtrl-C ends it; it goes on where it was."),
    )


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Who is left out."""

    attention: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of attention checks answered right.")
    ] = 0.6
    fastest_ms: Annotated[
        int, typer.Option(min=0, help="Least median time of an answer, in milliseconds.")
    ] = 300
    finished: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the trials answered.")
    ] = 0.5
    alike: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of answers in one place.")
    ] = 0.95


def analyse(
    survey: SurveyFolder,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Files that people returned, or folders of them."),
    ] = None,
    *,
    rules: RuleOptions,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(callback=checked_folder, help="Folder; else SURVEY/analysis.")
    ] = None,
) -> None:
    """What people answered: intervals over people and pictures, strengths, agreement; one page."""
    from dataclasses import asdict

    from sfumato.interactive.survey.answers import read_sessions
    from sfumato.interactive.survey.key import read_key

    key = read_key(survey)
    sessions = read_sessions(survey, key, files or ())
    from sfumato.interactive.survey.analysis import analyse as analyse_answers
    from sfumato.interactive.survey.analysis_page import (
        TITLES,
        agreement_rows,
        rows_of,
        summary,
        write_analysis,
    )
    from sfumato.interactive.survey.exclusions import Rules

    found = analyse_answers(
        key, sessions, rules=Rules(**asdict(rules)), resamples=resamples, seed=seed
    )
    log_wrapped(summary(found))
    for kind in found.everyone.results:
        columns, rows = rows_of(found, kind)
        log(f"\n{TITLES[kind]}")
        table = new_table(columns)
        for row in rows:
            table.add_row(*row)
        print_table(table)
    for name, text in agreement_rows(found):
        log(f"\nAgreement between people ({name}, Krippendorff's alpha): {text}")
    log(f"\nPage    {write_analysis(out or survey / 'analysis', found)}")


def simulate(
    survey: SurveyFolder,
    *,
    strengths: Annotated[
        list[str] | None,
        typer.Option("--strength", metavar="MODEL=X", help="Log odds; else 0. May be repeated."),
    ] = None,
    person_sd: Annotated[
        float, typer.Option(min=0, max=10, help="Spread over people, in log odds.")
    ] = 0.5,
    item_sd: Annotated[
        float, typer.Option(min=0, max=10, help="Spread over pictures, in log odds.")
    ] = 0.5,
    careless: Annotated[
        float, typer.Option(min=0, max=1, help="Share of people who answer at random.")
    ] = 0.0,
    leaving: Annotated[
        float, typer.Option(min=0, max=1, help="Share of people who stop half-way.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the crowd.")] = 0,
    out: Annotated[Path, typer.Option(callback=checked_folder, help="A new folder.")] = Path(
        "crowd"
    ),
) -> None:
    """Answers of a synthetic crowd with a known truth, as files that people return."""
    check_empty(out)
    from sfumato.interactive.survey.crowd import Crowd, write_crowd
    from sfumato.interactive.survey.key import read_key

    key = read_key(survey)
    crowd = Crowd(
        strengths=_strengths(strengths or (), key.arms),
        person_sd=person_sd,
        item_sd=item_sd,
        careless=careless,
        leaving=leaving,
    )
    count = write_crowd(out, key, crowd, seed=seed)
    log(f"{count} people in {out}; what is true is in {out}/truth.json")
    log(f"Analyse sfumato survey analyse {survey} {out} --out {out}/analysis")


def _strengths(given: Sequence[str], arms: Sequence[str]) -> list[float]:
    """Of each model, from `MODEL=X`."""
    found = dict.fromkeys(arms, 0.0)
    for text in given:
        name, _, number = text.rpartition("=")
        if name not in found:
            raise InputError(
                f"--strength {text}: the survey has no model '{name}'.",
                hint=f"It has: {', '.join(arms)}.",
            )
        try:
            found[name] = float(number)
        except ValueError as error:
            raise InputError(
                f"--strength {text}: '{number}' is not a number.",
                hint=f"For example: --strength {arms[0]}=0.5",
            ) from error
    return list(found.values())


survey_app = typer.Typer(
    help="Surveys of pictures for people: build, serve, analyse.", no_args_is_help=True
)
register(
    survey_app,
    [
        (build, "sfumato survey build runs/demo@1 runs/demo@3 --design preference --power 0.8"),
        (serve, "sfumato survey serve survey"),
        (analyse, "sfumato survey analyse survey returned/"),
        (simulate, "sfumato survey simulate survey --strength demo@3=0.5"),
    ],
)
