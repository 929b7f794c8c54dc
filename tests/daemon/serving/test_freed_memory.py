import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from daemon.serving.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for turn in range(4):  # the first two make the heap as large as it stays
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    frames = [bytearray(8 << 20) for _ in range(5)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * (8 << 20) // 4096


def faults(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, check=True, text=True, env={}).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
@pytest.mark.skipif(sys.maxsize < 2**32, reason="glibc keeps less where addresses have 32 bits")
def test_freed_frames_stay_with_the_process():
    assert faults("keep") < PAGES / 20 < PAGES / 2 < faults("as it starts")
