"""Errors meant for users: what is wrong, and a hint on what to do."""

import warnings
from collections.abc import Callable, Sequence


class SfumatoError(Exception):
    """A problem that the user can solve.

    The command line prints `what` and `hint` without a traceback and leaves with `exit_code`.
    """

    exit_code = 2

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(f"{what} {hint}".strip())
        self.what = what
        self.hint = hint


class ConfigError(SfumatoError):
    """A preset, a YAML file or a `--set` that cannot be understood."""


class InputError(SfumatoError):
    """An argument out of range, a missing file, an empty list."""


class DamagedDataError(SfumatoError):
    """A file that is truncated or was altered: checkpoints, images, data sets."""

    exit_code = 3


class TrainingError(SfumatoError):
    """Training cannot go on (a loss that is no longer finite, for example)."""


class DistributedError(SfumatoError):
    """Processes of one run that cannot find each other, differ, or lost one of them."""

    exit_code = 4


class SfumatoWarning(UserWarning):
    """Something that goes on and that the user should know of."""


class TruncatedPromptWarning(SfumatoWarning):
    """A prompt was cut to the encoder's token length."""


class UnknownWordsWarning(SfumatoWarning):
    """A prompt has words that the text encoder was not trained on."""


class OtherSubjectWarning(SfumatoWarning):
    """A prompt names nothing that the model was trained to draw."""


class SameCaptionsWarning(SfumatoWarning):
    """Captions of different text that the network cannot tell apart."""


class PickleWarning(SfumatoWarning):
    """Pickles were asked for and safetensors written."""


class DataWarning(SfumatoWarning):
    """Something of a data set is not used as it may seem to be."""


class LintWarning(SfumatoWarning):
    """A configuration that will not do what it seems to."""


class ResumeWarning(SfumatoWarning):
    """Something about a resumed run that may change its bits, or a checkpoint passed over."""


def _as_a_message(formatted: Callable[..., str]) -> Callable[..., str]:
    """Warnings of sfumato as on its command line; the place in the code says nothing to a user."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if issubclass(category, SfumatoWarning):
            return f"warning: {message}\n"
        return formatted(message, category, filename, lineno, line)

    return show


warnings.formatwarning = _as_a_message(warnings.formatwarning)


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence that names the nearest of `known`, or lists them when none is near."""
    from difflib import get_close_matches

    by_lower = {one.lower(): one for one in known}
    if near := get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5):
        return f"Did you mean '{by_lower[near[0]]}'?"
    return f"Known: {', '.join(known)}." if known else ""
