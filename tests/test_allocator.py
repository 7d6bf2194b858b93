"""malloc keeps what is freed, in a process of its own: the setting cannot be taken back."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import torch
from s2fpn_lib.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def fill():
    return torch.ones(16 * 2**20).sum()  # 64 MB, over glibc's largest mmap threshold
for _ in range(40):  # an aligned block does not fit the hole of one like it, so the first few still grow the heap
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument):
    command = [sys.executable, "-c", COUNT_FAULTS, argument]
    kept, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets glibc's malloc, which is Linux's")
def test_memory_is_used_again_instead_of_fetched_from_the_kernel():
    kept, count = faults("keep")
    if kept == "False":
        pytest.skip("this C library is not glibc")
    _, usual = faults("usual")
    assert count < usual / 5
