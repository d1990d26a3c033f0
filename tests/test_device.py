import subprocess
import sys

import pytest

from roarlib.device import keep_memory

PASSES = """
import resource
import torch
from roarlib.device import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [torch.ones(2_000_000) for _ in range(5)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
by_default = faults()
keep_memory()
faults()
print(by_default, faults())
"""


@pytest.mark.skipif(not keep_memory(), reason="the C library is not glibc: it has no such setting")
def test_kept_memory_is_not_faulted_in_again():
    by_default, kept = map(int, subprocess.check_output([sys.executable, "-c", PASSES], text=True).split())
    assert by_default > 10_000 and kept < by_default / 20
