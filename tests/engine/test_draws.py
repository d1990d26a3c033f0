import numpy as np
import torch
from scipy import stats

from roarlib.engine import draws


def test_mixing_function_gives_the_published_splitmix64_sequence():
    state = torch.tensor([1234567]) + torch.arange(1, 4) * draws._GOLDEN
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [v % 2**64 for v in draws._mix(state).tolist()] == wanted


def test_numbers_belong_to_the_image_not_to_the_batch():
    ids = torch.tensor([5, 0, 7])
    together = draws.normal(1, ids, 2, (3, 4, 5))
    alone = torch.cat([draws.normal(1, i[None], 2, (3, 4, 5)) for i in ids])
    assert torch.equal(together, alone)
    assert not torch.equal(draws.normal(2, ids, 2, (3, 4, 5)), together)
    assert not torch.equal(draws.normal(1, ids, 3, (3, 4, 5)), together)


def test_distributions():
    normal = draws.normal(0, torch.arange(50), 0, (3, 32, 32)).double().numpy()
    assert stats.kstest(normal.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(normal.reshape(50, -1)) - np.eye(50)).max() < 0.1
    uniform = draws.uniform(0, draws.RANDOM, torch.arange(50), 3072).double().numpy()
    assert uniform.min() >= 0 and uniform.max() < 1
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
