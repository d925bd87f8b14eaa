"""Which people are left out of an analysis, by rules that are fixed before the answers are seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from sfumato.interactive.survey.answers import Answer, Session
from sfumato.interactive.survey.key import Key

_FEWEST_ALIKE = 10
"""So many answers in the same place say nothing yet."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """`attention`: least share of attention checks answered right; `fastest_ms`: least median time
    of an answer; `finished`: least share of the trials; `alike`: largest share of answers in the
    same place, such as always left."""

    attention: float = 0.6
    fastest_ms: int = 300
    finished: float = 0.5
    alike: float = 0.95


def reasons(key: Key, session: Session, rules: Rules) -> list[str]:
    """Why a person is left out, in words; empty for one who is kept."""
    checks = of_kind(key, session, "attention")
    trials = of_kind(key, session, "trial")
    if not trials:
        return ["no answers"]
    found = []
    right = [valued(key, session, answer) for answer in checks]
    if right and sum(right) / len(right) < rules.attention:
        found.append(f"attention checks: {sum(right):.0f} of {len(right)} right")
    if (usual := median(answer.ms for answer in trials)) < rules.fastest_ms:
        found.append(f"median time {usual:.0f} ms")
    asked = sum(key.trials[name].kind == "trial" for name, _ in key.forms[session.form])
    if len(trials) < rules.finished * asked:
        found.append(f"{len(trials)} of {asked} trials answered")
    most = max(Counter(answer.choice for answer in trials).values())
    if len(trials) >= _FEWEST_ALIKE and most > rules.alike * len(trials):
        found.append(f"the same place in {most} of {len(trials)} answers")
    return found


def of_kind(key: Key, session: Session, kind: str) -> list[Answer]:
    return [one for one in session.answers if key.trials[one.trial].kind == kind]


def valued(key: Key, session: Session, answer: Answer) -> float:
    """What an answer is worth."""
    flip = key.forms[session.form][answer.number][1]
    return key.value(answer.trial, answer.choice, flip)


def split(
    key: Key, sessions: Sequence[Session], rules: Rules
) -> tuple[list[Session], dict[str, list[str]]]:
    """Those who are kept, and the reasons of those who are not, by name."""
    why = {one.name: reasons(key, one, rules) for one in sessions}
    return [one for one in sessions if not why[one.name]], {
        name: found for name, found in why.items() if found
    }
