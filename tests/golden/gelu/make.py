"""Fits the rational functions of crates/model/src/gelu.rs and writes golden.json beside this file.

    pip install numpy scipy
    python3 tests/golden/gelu/make.py

Prints for each function the coefficients (lowest power first) and the largest error of evaluating
them in single precision. The fit is a linear least squares of P - y Q, repeated with weights that
grow where the error is large (Lawson, 1961).
"""

import json
import pathlib

import numpy as np
from scipy.special import ndtr

END = 6.0


def density(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def slope(x):
    return ndtr(x) + x * density(x)


def fit(function, p_degree, q_degree, rounds=400):
    nodes = END / 2 * (1 - np.cos(np.pi * (np.arange(4000) + 0.5) / 4000))
    x = nodes[nodes > 1e-4]
    square = (x / END) ** 2
    y = (function(x) - 0.5) / x * END
    p_basis = np.polynomial.chebyshev.chebvander(2 * square - 1, p_degree)
    q_basis = np.polynomial.chebyshev.chebvander(2 * square - 1, q_degree)
    weight, q, best = np.ones_like(x), np.ones_like(x), None
    for _ in range(rounds):
        scale = weight * (x / END) / np.abs(q)
        matrix = np.hstack([p_basis, -y[:, None] * q_basis[:, 1:]]) * scale[:, None]
        solution, *_ = np.linalg.lstsq(matrix, y * scale, rcond=None)
        p = p_basis @ solution[: p_degree + 1]
        q = q_basis[:, 0] + q_basis[:, 1:] @ solution[p_degree + 1 :]
        error = np.abs((p / q - y) * (x / END))
        if q.min() > 0 and (best is None or error.max() < best[0]):
            best = (error.max(), solution)
        weight *= np.sqrt(error / error.max() + 1e-3)
        weight /= weight.mean()
    solution = best[1]
    p = powers(solution[: p_degree + 1]) / END
    q = powers(np.r_[1, solution[p_degree + 1 :]])
    return np.float32(p / q[0]), np.float32(q / q[0])


def powers(chebyshev):
    series = np.polynomial.chebyshev.Chebyshev(chebyshev, domain=[0, 1])
    coefficients = series.convert(kind=np.polynomial.Polynomial).coef
    return coefficients / (END * END) ** np.arange(len(coefficients))


def in_single_precision(p, q, x):
    x = np.clip(np.float32(x), np.float32(-END), np.float32(END))
    square = x * x

    def horner(coefficients):
        total = np.zeros_like(x)
        for coefficient in coefficients[::-1]:
            total = total * square + coefficient
        return total

    return np.float32(0.5) + x * (horner(p) / horner(q))


def main():
    dense = np.linspace(-12, 12, 2_000_001).astype(np.float32)
    for name, function, degrees in [("cumulative", ndtr, (5, 6)), ("derivative", slope, (7, 7))]:
        p, q = fit(function, *degrees)
        error = np.abs(in_single_precision(p, q, dense) - function(dense.astype(np.float64))).max()
        print(f"{name}: off by at most {error:.2e}")
        print("  P", [f"{c:.8e}" for c in p])
        print("  Q", [f"{c:.8e}" for c in q])
    x = np.r_[np.linspace(-8, 8, 161), -1e-4, 1e-4, 1e-30, -20.0, 20.0, 1e4].astype(np.float32)
    wide = x.astype(np.float64)
    golden = {
        "x": [float(v) for v in x],
        "value": list(wide * ndtr(wide)),
        "slope": list(slope(wide)),
    }
    path = pathlib.Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(golden, indent=0) + "\n")


main()
