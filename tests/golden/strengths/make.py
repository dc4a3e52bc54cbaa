"""Strengths by scipy's optimisers, for `crates/label/src/strength.rs`.

    python -m venv venv
    venv/bin/pip install numpy==2.4.6 scipy==1.17.1
    venv/bin/python tests/golden/strengths/make.py

Maximises the penalised Plackett-Luce likelihood as the module's documentation states it, first
by L-BFGS and then, from there, by a root of its gradient.
"""

import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize, root
from scipy.special import expit, log_softmax, softmax


def negative_objective(strengths, rankings, deviation):
    value = strengths @ strengths / (2 * deviation**2)
    gradient = strengths / deviation**2
    for order, placed, weight in rankings:
        for place in range(min(placed, len(order) - 1)):
            left = order[place:]
            value -= weight * log_softmax(strengths[left])[0]
            gradient[left] += weight * softmax(strengths[left])
            gradient[left[0]] -= weight
    return value, gradient


def fit(documents, rankings, deviation):
    arguments = (rankings, deviation)
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 100_000, "maxfun": 1_000_000}
    near = minimize(
        negative_objective, np.zeros(documents), arguments, "L-BFGS-B", jac=True, options=options
    )
    found = root(lambda s: negative_objective(s, *arguments)[1], near.x, tol=1e-13)
    assert np.abs(negative_objective(found.x, *arguments)[1]).max() < 1e-10, found.message
    return found.x


def preferences(rng, documents, degree, certain):
    """Both rankings of each edge of random cycles; the better documents have higher numbers."""
    truth = np.sort(rng.normal(0, 2, documents))
    edges = set()
    for _ in range(degree // 2):
        cycle = rng.permutation(documents).tolist()
        for a, b in zip(cycle, cycle[1:] + cycle[:1]):
            edges.add((min(a, b), max(a, b)))
    rankings = []
    for a, b in sorted(edges):
        p = 0.0 if certain else float(expit(truth[a] - truth[b] + rng.normal(0, 0.7)))
        rankings += [([a, b], 1, p), ([b, a], 1, 1 - p)]
    return rankings


def orders(rng, documents, samples, size):
    """Noisy orders of some of the documents; of every third only the upper half was placed."""
    truth = np.sort(rng.normal(0, 2, documents))
    rankings = []
    for sample in range(samples):
        shown = rng.permutation(documents)[:size]
        noisy = truth[shown] + rng.gumbel(0, 1, size)
        placed = size // 2 if sample % 3 == 2 else size
        rankings.append((shown[np.argsort(-noisy)].tolist(), placed, 1 / samples))
    return rankings


def main():
    rng = np.random.default_rng(7)
    cases = [
        ("soft preferences", 30, 5.0, preferences(rng, 30, 4, certain=False)),
        ("a teacher that never wavers", 20, 5.0, preferences(rng, 20, 6, certain=True)),
        ("a weak prior", 12, 100.0, preferences(rng, 12, 4, certain=False)),
        ("orders", 20, 3.0, orders(rng, 20, 5, 20)),
        ("orders of windows", 30, 3.0, orders(rng, 30, 9, 12)),
    ]
    golden = [
        {
            "name": name,
            "documents": documents,
            "deviation": deviation,
            "rankings": rankings,
            "strengths": fit(documents, rankings, deviation).tolist(),
        }
        for name, documents, deviation, rankings in cases
    ]
    path = Path(__file__).with_name("golden.json")
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in golden) + "\n]\n")


if __name__ == "__main__":
    main()
