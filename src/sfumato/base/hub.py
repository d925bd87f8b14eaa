"""The Hugging Face Hub: its refusals as messages, and its libraries without their chatter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sfumato.base.errors import InputError

T = TypeVar("T")

LOOKUP_SECONDS = 5.0
"""What a first question to the Hub may take. It is asked without the library's retries, so that a
machine without a network has its answer at once."""


def reach(request: Callable[[], T], *, name: str, kind: str, ways: str) -> T:
    """What `request` gets from the Hub for the `kind` ("data set") called `name` (OWNER/NAME).

    `InputError` where it is not to be had: closed, unknown, or the Hub is out of reach; the last
    with `ways` out.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return request()
    except GatedRepoError as error:
        raise InputError(
            f"{name} is open to registered people only.",
            hint="Accept its terms on the Hub's page, then `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no {kind} '{name}' on the Hub, and no folder of that name here.",
            hint="Check the spelling (OWNER/NAME); a private one needs `hf auth login`.",
        ) from error
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error, ways) from error
    except Exception as error:
        if not is_of_network(error):
            raise
        raise _unreachable(name, error, ways) from error


def is_of_network(error: Exception) -> bool:
    """Errors of the HTTP client, whose package has had two names; they share no base."""
    return "httpx" in type(error).__module__ and "Status" not in type(error).__name__


def _unreachable(name: str, error: Exception, ways: str) -> InputError:
    return InputError(
        f"There is no folder '{name}' here, and it could not be fetched from the Hub "
        f"({reason(error)}).",
        hint=ways,
    )


def reason(error: Exception) -> str:
    """The first line of an error, without its full stop; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bars and its table of the weights that another half of a model has."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
