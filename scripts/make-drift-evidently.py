#!/usr/bin/env python3
"""Makes tests/fixtures/drift-evidently.json: what Evidently says of samples, for the drift scores to agree with.

Needs evidently==0.7.23 and pandas 2. Categories go in as they are. Numbers go in as they are, too: Evidently makes bins of both samples
together, by Sturges' rule, and the fixture has the counts in just these bins. Samples in which a bin is empty are left
out, because Evidently fills it with 0.0001 and the gateway with half a row. Evidently gives the p-value of
Kolmogorov-Smirnov and not the distance, so that one is of scipy's ks_2samp, which Evidently calls, over the bins' numbers.
"""

import json
import pathlib

import numpy as np
import pandas as pd
from evidently.legacy.calculations.stattests.jensenshannon import _jensenshannon
from evidently.legacy.calculations.stattests.psi import _psi
from evidently.legacy.core import ColumnType
from scipy.stats import ks_2samp

rng = np.random.default_rng(7)


def case(reference, current, kind, expected, observed):
    if min(*expected, *observed) == 0:
        return None
    reference, current = pd.Series(reference), pd.Series(current)
    places = np.arange(len(expected))
    return {
        "expected": [int(count) for count in expected],
        "observed": [int(count) for count in observed],
        "psi": float(_psi(reference, current, kind, 0.1)[0]),
        "js": float(_jensenshannon(reference, current, kind, 0.1, base=2)[0]),
        "ks": float(ks_2samp(np.repeat(places, expected), np.repeat(places, observed)).statistic),
    }


def numbers():
    for n, shift, scale in ((200, 0, 1), (1000, 0, 1), (1000, 0.5, 1), (5000, 0.3, 1.4), (5000, 0, 0.8)):
        for m in (1000, 10_000):
            reference, current = rng.normal(0, 1, m).clip(-2, 2), rng.normal(shift, scale, n).clip(-2, 2)
            edges = np.histogram_bin_edges(np.hstack((reference, current)), bins="sturges")
            counts = [np.histogram(side, edges)[0] for side in (reference, current)]
            yield case(reference, current, ColumnType.Numerical, *counts)


def categories():
    for places in (2, 3, 6, 12):
        for m, n in ((1000, 200), (30_000, 997), (500, 500)):
            names = np.array([f"category {place}" for place in range(places)])
            sides = [rng.choice(places, rows, p=rng.dirichlet(np.full(places, 9))) for rows in (m, n)]
            counts = [np.bincount(side, minlength=places) for side in sides]
            yield case(names[sides[0]], names[sides[1]], ColumnType.Categorical, *counts)


cases = [found for found in (*numbers(), *categories()) if found]
path = pathlib.Path(__file__).parent.parent / "tests" / "fixtures" / "drift-evidently.json"
path.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
print(f"{len(cases)} cases")
