import subprocess
import sys

import pytest

from roarlib.study.machine import installed, keep_memory

PASSES = """
import resource
import torch
from roarlib.engine import attribute, estimators, models
from roarlib.study.machine import keep_memory

model, images = models.build("resnet-tiny", 10, (3, 32, 32)).eval(), torch.zeros(256, 3, 32, 32)

def faults():
    estimators.grad(model, images, torch.zeros(256, dtype=torch.int64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        estimators.grad(model, images, torch.zeros(256, dtype=torch.int64))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default = faults()
keep_memory()
faults()
print(by_default, faults())
"""


@pytest.mark.skipif(not keep_memory(), reason="the C library is not glibc: it has no such setting")
def test_kept_memory_is_not_faulted_in_again():
    by_default, kept = map(int, subprocess.check_output([sys.executable, "-c", PASSES], text=True).split())
    assert by_default > 10_000 and kept < by_default / 10


def test_a_clone_that_is_not_installed_can_say_what_computed():
    assert installed("roarlib-is-not-this") == "" and installed("torch")
