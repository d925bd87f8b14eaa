"""The peak memory of a script in a process of its own."""

import subprocess
import sys

# Not `ru_maxrss`: Linux keeps it over `exec`, so that a child reports the peak of the process that
# started it where that is higher, here of all the tests before.
_AND_ITS_PEAK = """
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")))
"""


def run_alone(script: str) -> tuple[list[str], int]:
    """What `script` printed, line by line, and its peak memory in bytes, its imports included."""
    done = subprocess.run(
        [sys.executable, "-c", script + _AND_ITS_PEAK], capture_output=True, text=True, check=True
    )
    *lines, kibibytes = done.stdout.splitlines()
    return lines, int(kibibytes) * 1024
