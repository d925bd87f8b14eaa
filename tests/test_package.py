"""The package as a whole: quick to import, free of torchvision, floors held by import-linter."""

import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution, requires

import pytest

HEAVY = ["torch", "transformers", "diffusers", "sklearn", "matplotlib", "PIL", "numpy"]


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - started


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, sfumato; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_nothing_heavy_for_help() -> None:
    code = (
        "import sys\nsys.argv = ['sfumato', '--help']\nimport sfumato.cli\n"
        "try:\n    sfumato.cli.main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded []" in done.stdout


def test_import_is_quick() -> None:
    """< 0.3 s above bare python, median of three interleaved pairs; slack for CI."""
    pairs = [(seconds("import sfumato"), seconds("pass")) for _ in range(3)]
    assert statistics.median(full - bare for full, bare in pairs) < 0.3 * 2


def test_public_names_resolve(refused) -> None:
    import sfumato

    for name in sfumato.__all__:
        assert getattr(sfumato, name).__name__ == name
    with refused(AttributeError):
        _ = sfumato.nothing


def test_torchvision_is_not_required_even_transitively() -> None:
    """Where torchvision is broken, `import transformers` breaks."""
    forbidden = {"torchvision", "timm", "open_clip_torch", "open-clip-torch"}
    seen: set[str] = set()
    queue = ["sfumato"]
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue  # needed only on another platform or Python
        for requirement in needed:
            marker = requirement.partition(";")[2]
            if "extra" not in marker:
                queue.append(requirement_name(requirement))
    assert "torch" in seen
    assert len(seen) > 20
    assert not forbidden & seen
    for name in forbidden:
        with pytest.raises(PackageNotFoundError):
            distribution(name)


def requirement_name(requirement: str) -> str:
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index]
    return requirement


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_command_line_keeps_freed_memory():
    code = """
import resource, torch
from sfumato.base.memory import keep_freed_memory
if not keep_freed_memory():
    print("skip"); raise SystemExit
for _ in range(3):  # warm
    [torch.ones(1 << 20) for _ in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    [torch.ones(1 << 20) for _ in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "skip":
        pytest.skip("the C library is not glibc")
    assert int(done.stdout) < 0.1 * 10 * 8 * (1 << 22) / resource.getpagesize()
