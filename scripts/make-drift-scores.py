#!/usr/bin/env python3
"""Makes tests/fixtures/drift-scores.json: what numpy and scipy say of counts, for the drift scores to agree with.

Needs numpy and scipy. The seed is fixed, so that the same versions write the same file.
"""

import json
import pathlib

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import chi2

rng = np.random.default_rng(5)


def score(expected, observed):
    e, o = np.asarray(expected, float), np.asarray(observed, float)
    m, n = e.sum(), o.sum()
    either = (e + o) > 0
    # A place without a row counts as half a row.
    q = np.where(e == 0, 0.5, e)[either] / m
    p = np.where(o == 0, 0.5, o)[either] / n
    ks = float(np.abs(np.cumsum(o / n - e / m)).max())
    return {
        "expected": [int(x) for x in e],
        "observed": [int(x) for x in o],
        "psi": float((rel_entr(p, q) + rel_entr(q, p)).sum()),
        "js": float(jensenshannon(o / n, e / m, base=2)),
        "ks": ks,
        "linf": float(np.abs(o / n - e / m).max()),
        "robust": max(0.0, ks - 1.8 * float(np.sqrt((n + m) / (n * m)))),
    }


def cases():
    for places in (1, 2, 5, 13, 23, 53):
        for m, n in ((1000, 200), (30000, 997), (500, 500)):
            shares = rng.dirichlet(np.ones(places))
            yield rng.multinomial(m, shares), rng.multinomial(n, shares)
            yield rng.multinomial(m, shares), rng.multinomial(n, rng.dirichlet(np.ones(places)))
    yield [10, 0, 0, 5], [0, 7, 0, 5]
    yield [100, 0], [0, 100]


fixture = {
    "scores": [score(e, o) for e, o in cases()],
    "chi_square": [
        {"freedom": freedom, "tail": tail, "point": float(chi2.isf(tail, freedom))}
        for freedom in (1, 2, 3, 5, 9, 10, 19, 22, 52, 200)
        for tail in (0.5, 0.05, 0.05 / 21, 0.05 / 23, 0.05 / 1024)
    ],
    "by_chance": [
        {"n": n, "m": m, "places": places, "features": features,
         "point": float((1 / n + 1 / m) * chi2.isf(0.05 / features, places - 1))}
        for n, m, places, features in ((200, 1000, 23, 21), (500, 10000, 10, 1), (5000, 30000, 53, 300))
    ],
}
path = pathlib.Path(__file__).parent.parent / "tests" / "fixtures" / "drift-scores.json"
path.write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
