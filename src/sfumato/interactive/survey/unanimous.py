"""Groups in which all answers agree.

Drawing people and pictures anew changes nothing there, which is no certainty. What is exact:
answers of which no two share a person or a picture are independent, so n of them that all say the
same are as n throws of a coin.
"""

from statistics import NormalDist

import numpy as np

from sfumato.interactive.survey.bootstrap import Answers, Array

_Z = NormalDist().inv_cdf(0.975)


def independent_answers(answers: Answers) -> Array:
    """(G,) int: the most answers of each group of which no two share a person or a picture."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    _, counts = answers.tables()
    return np.array([(maximum_bipartite_matching(csr_array(one > 0)) >= 0).sum() for one in counts])


def unanimous_groups(answers: Answers) -> Array:
    """(G,) bool: whether a group has answers, and all are worth the same."""
    lowest, highest = np.full(answers.groups, np.inf), np.full(answers.groups, -np.inf)
    np.minimum.at(lowest, answers.group, answers.value)
    np.maximum.at(highest, answers.group, answers.value)
    return lowest == highest


def exact_limits(share: float, units: int) -> tuple[float, float]:
    """The 95 % interval of a `share` of 0 or 1 among independent `units` (Clopper and Pearson
    1934). It leaves 1/2 out where `sign_test` is below 0.05."""
    least = 0.025 ** (1 / units)
    return (least, 1.0) if share == 1.0 else (0.0, 1 - least)


def sign_test(units: int) -> float:
    """The two-sided p-value that so many independent units all agree where each is even."""
    return min(1.0, 2.0 ** (1 - units))


def hidden_variances(answers: Answers, *, share: bool) -> Array:
    """(G,): what the bootstrap does not see of the variance of each mean: nothing where answers
    differ; of a unanimous share what its exact interval says (the square of its reach in standard
    deviations, Zou and Donner 2008); NaN where nothing says it: of levels, and of groups whose
    answers are all of one person or one picture."""
    units = independent_answers(answers)
    found = np.where(units < 2, np.nan, 0.0)
    for group in np.flatnonzero(unanimous_groups(answers)):
        mean = answers.value[answers.group == group][0]
        found[group] = np.nan
        if share and mean in (0.0, 1.0) and units[group] > 1:
            low, high = exact_limits(mean, int(units[group]))
            found[group] = ((high - low) / _Z) ** 2
    return found
