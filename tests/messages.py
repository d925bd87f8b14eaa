"""What errors and warnings of tests say, whole, in one file that reads from top to bottom.

`messages.yaml` has the messages of each test in the order in which the test meets them, as the
command line prints them: the text, then the hint. A test fails when a message is another one.
`pytest -n 0 --write-messages` writes the entries of the tests that it runs and that pass.
"""

import re
import tempfile
from difflib import ndiff
from pathlib import Path

import yaml

from sfumato.base.errors import SfumatoError
from sfumato.base.files import write_text

FILE = Path(__file__).with_suffix(".yaml")
REPOSITORY = Path(__file__).parents[1]
PLACES = {
    str(REPOSITORY): "REPOSITORY",
    tempfile.gettempdir(): "TMP",
    **({} if Path.home() == Path("/") else {str(Path.home()): "HOME"}),
}
VARYING = {
    r"TMP/tmp\w{8}\b": "TMP",  # of tempfile
    r"\b(?=\d*[a-f])[0-9a-f]{12,64}\b": "SHA256",
    r"\b0x[0-9a-f]{6,}\b": "ADDRESS",
    r"127\.0\.0\.1:\d{4,5}\b": "127.0.0.1:PORT",
    r"\n +For further information visit https://errors\.pydantic\.dev/.*$": "",
    r" \[type=\w+, input_value=.*\]$": "",  # of pydantic too
}
IN_BRACKETS = r"(?<=\().*(?=\))"
"""Where our messages quote those of other libraries: `theirs` of the fixture `refused`."""
THIS_MACHINE = r"(?<=-> )[^)]+"
"""Where a warning tells this machine from another: `theirs` of the fixture `warned`."""


def printed(error: BaseException) -> str:
    """The class and the text of an error or a warning, and its hint on a line of its own."""
    if not isinstance(error, SfumatoError):
        return f"{type(error).__name__}: {error}"
    return f"{type(error).__name__}: {error.what}" + (f"\n-> {error.hint}" if error.hint else "")


def normalised(text: str, session: Path) -> str:
    """`text` without what differs between machines and runs; `session` is pytest's own folder."""
    numbered = r"(/popen-gw\d+)?(/\w*\d(?!\w))?"  # folders of a worker process and of a test
    text = re.sub(re.escape(str(session)) + numbered, "TMP", text)
    for place in sorted(PLACES, key=len, reverse=True):  # one may lie in another
        text = re.sub(rf"{re.escape(place)}(?![\w-])", PLACES[place], text)
    for pattern, name in VARYING.items():
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text


class Messages:
    """What the tests of a session meet, compared with the file or, with `write`, put into it."""

    def __init__(self, *, write: bool) -> None:
        self.write = write
        self.known: dict[str, list[str]] = yaml.safe_load(FILE.read_text("utf-8"))
        self.met: dict[str, list[str]] = {}
        self.passed: set[str] = set()

    def meet(self, test: str, message: str) -> str:
        """Note a message of a test; what is wrong with it, or nothing."""
        met = self.met.setdefault(test, [])
        met.append(message)
        known = self.known.get(test, [])[len(met) - 1 : len(met)]
        if self.write or known == [message]:
            return ""
        lines = ndiff("".join(known).splitlines(), message.splitlines())
        return "\n".join(
            (f"Message {len(met)} of {test} is not that of {FILE.name}:", *lines, refresh(test))
        )

    def finish(self, test: str) -> str:
        """Note that a test passed; what is wrong with its number of messages, or nothing."""
        self.passed.add(test)
        known, met = self.known.get(test, []), self.met.get(test, [])
        if self.write or len(known) == len(met):
            return ""
        return f"{test} met {len(met)} of its {len(known)} messages.\n{refresh(test)}"

    def save(self) -> None:
        """Write the entries of the tests that passed; those of the others stay."""
        kept = {test: known for test, known in self.known.items() if test not in self.passed}
        entries = kept | {test: met for test, met in self.met.items() if test in self.passed}
        write_text(FILE, yaml.dump(entries, Dumper=_Blocks, allow_unicode=True, width=10**6))


def refresh(test: str) -> str:
    """What to do where a change of messages is meant."""
    file = f"tests/{test.partition('::')[0]}"
    return f"If that is meant, write it, and read it: python -m pytest -n 0 --write-messages {file}"


class _Blocks(yaml.SafeDumper):
    """Messages as they are, line by line."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if ": " in text else None  # a message begins with its class; keys stay plain
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Blocks.add_representer(str, _block)
