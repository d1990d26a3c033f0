"""How much differences vary over seeds, estimated from all estimators of a study together (moderated t tests).

A few seeds hardly determine a spread, and a t test pays for that; but the estimators of a study mostly vary alike, so
each can borrow from the others, as far as their spreads agree. All share Random's retrainings, so together they tell
less than as many independent estimators would.
Source: Smyth, Statistical Applications in Genetics and Molecular Biology 3 (2004), for moderated t tests; Bai and
Saranadasa, Statistica Sinica 6 (1996), for the squared correlation without its bias. Ours: the corrections
below that keep the chance of a false verdict at the level where spreads do not agree (tests, LOG.md).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats as scipy_stats

ALIKE = 1 / 4  # squared correlation of two differences if Random varies like the others
FEWEST = 3  # estimators, and seeds, below which there is nothing to borrow
WIDE = 0.05  # level of the F test by which an estimator varies more than the others, and borrows nothing


class Shared(NamedTuple):
    """What the differences of all estimators say about the variance of each: arrays (..,).

    variance: the typical one. degrees: how many degrees of freedom it counts for beside an estimator's own; 0: none.
    most: the degrees of freedom with which it is itself known.
    """

    variance: np.ndarray
    degrees: np.ndarray
    most: np.ndarray


ALONE = Shared(np.zeros(()), np.zeros(()), np.zeros(()))  # nothing shared: a test by its own seeds alone


def shared(values) -> Shared:
    """From differences (.., estimators, seeds), every estimator with the same seeds.

    variance: the geometric mean, unbiased in logs. degrees: from the spread of log variances beyond what so few seeds
    explain, at its upper 90 percent limit, as a few estimators cannot show that they are alike. most: Satterthwaite's
    of a mean of correlated variances, whose squared correlation counts as at least ALIKE. ALONE for fewer than FEWEST
    estimators or seeds, and where one does not vary.
    """
    values = np.asarray(values, dtype=float)
    m, own = values.shape[-2], values.shape[-1] - 1
    if m < FEWEST or own + 1 < FEWEST:
        return ALONE
    apart = values - values.mean(-1, keepdims=True)
    covariance = apart @ np.swapaxes(apart, -1, -2) / own
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    if not variances.all():
        return ALONE
    # without bias: sums of squared variances, of all squared covariances, and of products of two variances
    total, itself = variances.sum(-1), np.square(variances).sum(-1) * own / (own + 2)
    squares = own**2 / (own - 1) / (own + 2) * (np.square(covariance).sum((-1, -2)) - total**2 / own)
    between = total**2 - 2 * squares / own - itself
    correlation = np.clip((squares - itself) / between, ALIKE, 1)
    logs = np.log(variances) - special.digamma(own / 2) + np.log(own / 2)
    most = own * (itself + between) / (itself + correlation * between)
    seen = logs.var(-1, ddof=1) * (m - 1) / scipy_stats.chi2.ppf(0.1, m - 1)
    beyond = np.maximum(seen - special.polygamma(1, own / 2) * (1 - correlation), 1e-8)
    return Shared(np.exp(logs.mean(-1)), 2 * _trigamma_inverse(beyond), most)


def of_study(values: np.ndarray) -> list[Shared]:
    """For each row of differences (estimators, seeds; NaN: no such seed), what those with the same seeds say.

    If an estimator lacks seeds, the others are taken without these, too. Those that do not vary say nothing.
    """
    there, found = ~np.isnan(values), {}
    for mask in np.unique(there, axis=0):
        group = values[(there >= mask).all(axis=1)][:, mask]
        found[mask.tobytes()] = shared(group[np.ptp(group, axis=1) > 1e-12]) if mask.any() else ALONE
    return [found[mask.tobytes()] for mask in there]


@cache
def expected(n: int, m: int) -> float:
    """Degrees of freedom of a `moderated` variance over n seeds of m estimators, where they and Random vary alike.

    The harmonic mean over 200 simulated studies.
    """
    if m < FEWEST or n < FEWEST:
        return n - 1
    noise = np.random.default_rng(0).standard_normal((200, m + 1, n))
    others = shared(noise[:, 1:] - noise[:, :1])
    return float(scipy_stats.hmean(moderated(others.variance, n, others)[1]))


def _trigamma_inverse(y):
    """x > 0 with polygamma(1, x) = y > 0: Newton's steps from below, where the function is convex."""
    x = (1 + np.sqrt(1 + 2 * y)) / (2 * y)
    for _ in range(6):
        x -= (special.polygamma(1, x) - y) / special.polygamma(2, x)
    return x


def moderated(variances, n, others: Shared = ALONE) -> tuple[np.ndarray, np.ndarray]:
    """Mean of variances over n seeds (..,) and the shared one, weighted by degrees of freedom; and its degrees.

    A variance clearly above the shared one (WIDE) stays as it is: else the widest of many would be told too often.
    """
    own, variances = np.asarray(n) - 1, np.asarray(variances)
    most = np.maximum(others.most, own)
    wide = scipy_stats.f.sf(variances / np.maximum(others.variance, 1e-300), own, most) < WIDE
    borrowed = np.where(wide, 0, others.degrees)
    whole = borrowed + own
    mixed = (borrowed * others.variance + own * variances) / np.maximum(whole, 1e-300)
    return mixed, np.minimum(whole, most)


def tested(values, margin: float, others: Shared = ALONE) -> dict:
    """Paired differences over seeds (.., n): n, mean, std (ddof 1), low, high, p, p_equal and degrees (of freedom).

    low, high: the 95 percent t interval of the mean (with `others` 95 percent on average over estimators, and somewhat
    less for those that vary most). p: of no difference, two-sided. p_equal: of a difference of
    `margin` or more, the larger of two one-sided ones. All with the `moderated` variance, and NaN where it is 0 or
    undefined: a few seeds that agree by chance do not tell the spread. Without `others` they are Student's.
    Source: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15 (1987), for the two one-sided tests (TOST).
    """
    values = np.asarray(values, dtype=float)
    n = values.shape[-1]
    mean = values.mean(-1) if n else values.sum(-1) * np.nan
    std = values.std(-1, ddof=1) if n > 1 else mean * np.nan
    variance, degrees = moderated(np.square(std), n, others)
    error = np.sqrt(np.where(variance > 1e-24, variance, np.nan) / n)
    half = scipy_stats.t.ppf(0.975, degrees) * error
    p = 2 * scipy_stats.t.sf(abs(mean) / error, degrees)
    p_equal = scipy_stats.t.sf((margin - abs(mean)) / error, degrees)
    return dict(n=n, mean=mean, std=std, low=mean - half, high=mean + half, p=p, p_equal=p_equal, degrees=degrees)
