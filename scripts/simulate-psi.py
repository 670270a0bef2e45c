#!/usr/bin/env python3
"""Prints by how much the PSI of two samples of one population exceeds (1/n + 1/m) chi-square: src/drift/scores.rs.

Needs numpy and scipy. For each number of places and sizes of samples: the quantile that is exceeded once in twenty
windows, and once in twenty windows in any of 46 features, over what chi-square makes of it; and the factor that is used.
"""

import numpy as np
from scipy.stats import chi2

DRAWS = 60_000
rng = np.random.default_rng(1)


def psi(expected, observed):
    m, n = expected.sum(-1, keepdims=True), observed.sum(-1, keepdims=True)
    neither = (expected == 0) & (observed == 0)
    q = np.where(expected == 0, 0.5, expected) / m
    p = np.where(observed == 0, 0.5, observed) / n
    return np.where(neither, 0, (p - q) * np.log(p / q)).sum(-1)


for places in (5, 10, 21, 51):
    for m in (1000, 5000, 30000):
        for n in (200, 250, 500, 1000, 2000):
            shares = np.full(places, 1 / places)
            drawn = psi(rng.multinomial(m, shares, DRAWS), rng.multinomial(n, shares, DRAWS))
            ratios = [
                np.quantile(drawn, 1 - tail) / ((1 / n + 1 / m) * chi2.isf(tail, places - 1))
                for tail in (0.05, 0.05 / 46)
            ]
            used = 1 + 1.5 * places / min(n, m)
            print(f"{places} places, {m} and {n} rows: {ratios[0]:.3f} {ratios[1]:.3f}, used {used:.3f}")
