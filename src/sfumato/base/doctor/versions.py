"""Versions: what is installed, what sfumato asks for, and whether it can be imported."""

import platform
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from types import ModuleType

from sfumato import __version__
from sfumato.base.doctor.findings import Check, Finding
from sfumato.base.environment import code_digest

PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "pyarrow": "pyarrow",
    "numpy": "numpy",
    "pillow": "PIL",
    "safetensors": "safetensors",
}
"""The distributions that decide whether sfumato runs, and the module of each."""

_DISTRIBUTION = "sfumato"


def wanted() -> dict[str, str]:
    """The version specifiers of sfumato's own metadata by distribution: {"torch": ">=2.7"}.

    Empty where sfumato runs from a folder that was never installed.
    """
    try:
        lines = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = requirement.strip().split(">")[0].split("=")[0].split("<")[0].strip()
        if "extra" not in marker:
            found[name.lower()] = requirement.strip()[len(name) :].strip()
    return found


def satisfies(found: str, specifier: str) -> bool | None:
    """Whether a version is in a specifier (">=2.7,<3"); None where that cannot be decided."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion
    except ImportError:
        return None
    try:
        return SpecifierSet(specifier).contains(found, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None


Importer = Callable[[str], ModuleType]


def check_versions(importer: Importer = import_module) -> tuple[Check, ModuleType | None]:
    """The versions of Python and of `PACKAGES`; and torch, None where its import fails."""
    specifiers = wanted()
    python = platform.python_version()
    asked = _asked_python()
    fits = satisfies(python, asked) is not False
    hint = "" if fits else "Create the environment with another Python (make PYTHON=python3.12)."
    findings = [
        Finding("ok", f"sfumato {__version__}, code {code_digest()}"),
        Finding("ok" if fits else "wrong", f"Python {python}{_wants(asked)}", hint),
    ]
    if not specifiers:
        findings.append(
            Finding("note", "sfumato is not installed: no versions to compare", "pip install -e .")
        )
    facts: dict[str, str | None] = {"code": code_digest(), "python": python}
    torch = None
    for name, module in PACKAGES.items():
        found, finding, loaded = _check_package(name, module, specifiers.get(name, ""), importer)
        findings.append(finding)
        facts[name] = found
        torch = loaded if name == "torch" else torch
    findings += _check_torchvision(facts["torch"])
    return Check("Versions", findings, facts), torch


def _check_package(
    name: str, module: str, specifier: str, importer: Importer
) -> tuple[str | None, Finding, ModuleType | None]:
    """The version, the finding, and the module where it can be imported."""
    install = f"pip install '{name}{specifier}'"
    try:
        found = version(name)
    except PackageNotFoundError:
        return None, Finding("wrong", f"{name} is not installed{_wants(specifier)}", install), None
    try:
        loaded = importer(module)
    except Exception as error:  # a broken binary raises whatever it likes
        reason = (str(error).strip().splitlines() or [""])[0]
        what = f"{name} {found} cannot be imported: {type(error).__name__}: {reason}"
        repair = f"pip install --force-reinstall '{name}{specifier}'"
        return found, Finding("wrong", what, repair), None
    found = getattr(loaded, "__version__", found)  # of torch with its build, 2.13.0+cpu
    text = f"{name} {found}{_wants(specifier)}"
    if satisfies(found, specifier) is False:
        return found, Finding("wrong", text, install), loaded
    return found, Finding("ok", text), loaded


def _asked_python() -> str:
    try:
        return metadata(_DISTRIBUTION)["Requires-Python"] or ""
    except (PackageNotFoundError, KeyError):
        return ""


def _wants(specifier: str) -> str:
    return f" (wants {specifier})" if specifier else ""


def _check_torchvision(torch_version: str | None) -> list[Finding]:
    """sfumato does not need torchvision, but transformers imports one that is installed."""
    name = "torchvision"
    try:
        found, needs = version(name), requires(name) or []
    except PackageNotFoundError:
        return []
    for line in needs:
        requirement, _, marker = line.partition(";")
        specifier = requirement.strip().removeprefix("torch").strip(" ()")
        is_torch = requirement.strip().startswith("torch") and specifier[:1] in ("=", ">", "<")
        if not is_torch or "extra" in marker or torch_version is None:
            continue
        if satisfies(torch_version, specifier) is False:
            text = f"{name} {found} was built for torch {specifier}, not {torch_version}"
            return [Finding("wrong", text, f"pip uninstall {name} (sfumato does not need it)")]
    return [Finding("ok", f"{name} {found} fits torch (sfumato does not need it)")]
