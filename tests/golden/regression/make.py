"""Makes golden.json beside it: isotonic, logistic and ridge fits as scikit-learn and SciPy have them.

    python -m venv venv
    venv/bin/pip install scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
    venv/bin/python tests/golden/regression/make.py

The examples are random, with ties on purpose. A logistic fit to graded targets, which scikit-learn's
Platt scaling does not have, is SciPy's minimum of the same loss; on binary targets that must be
scikit-learn's. Run again only to change the file on purpose.
"""

import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import pearsonr
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent


def rounded(values, digits=3):
    return np.round(values, digits).tolist()


def isotonic(random, count, digits):
    x = np.round(random.random(count), digits)
    y = np.round(np.clip(x**2 + 0.3 * random.standard_normal(count), 0, 1), 3)
    at = np.round(np.linspace(-0.1, 1.1, 25), 3)
    fit = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    return {"x": x.tolist(), "y": y.tolist(), "at": at.tolist(), "expected": fit.predict(at).tolist()}


def platt(random, count, levels):
    x = np.round(2 * random.standard_normal(count), 3)
    noisy = 1 / (1 + np.exp(-(0.8 * x - 0.7 + random.standard_normal(count))))
    y = np.round(noisy * levels) / levels
    positives, negatives = y.sum(), count - y.sum()
    top, bottom = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    targets = bottom + (top - bottom) * y

    def loss(map):
        logits = map[0] * x + map[1]
        return np.sum(np.logaddexp(0, logits) - targets * logits)

    slope, offset = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x
    at = np.round(np.linspace(-6, 6, 13), 3)
    expected = 1 / (1 + np.exp(-(slope * at + offset)))
    if levels == 1:
        assert np.abs(_SigmoidCalibration().fit(x, y).predict(at) - expected).max() < 1e-5
    return {"x": x.tolist(), "y": y.tolist(), "at": at.tolist(), "expected": expected.tolist()}


def ridge(random, count, width, penalty):
    rows = np.round(random.standard_normal((count, width)) * 10.0 ** np.arange(width) + 3, 3)
    rows[:, -1] = rows[:, 0] * 2 + np.round(0.01 * random.standard_normal(count), 3)
    y = np.round(rows[:, 0] - 0.1 * rows[:, 1] + random.standard_normal(count), 3)
    at = np.round(random.standard_normal((5, width)) * 10.0 ** np.arange(width), 3)
    fit = make_pipeline(StandardScaler(), Ridge(alpha=penalty, solver="cholesky")).fit(rows, y)
    return {
        "rows": rows.tolist(),
        "y": y.tolist(),
        "penalty": penalty,
        "weights": fit[-1].coef_.tolist(),
        "at": at.tolist(),
        "expected": fit.predict(at).tolist(),
    }


def correlation(random, count):
    x = np.round(random.random(count), 2)
    y = np.round(random.random(count) - 0.5 * x, 2)
    return {"x": x.tolist(), "y": y.tolist(), "expected": pearsonr(x, y).statistic}


def main():
    random = np.random.default_rng(42)
    golden = {
        "isotonic": [isotonic(random, 40, 1), isotonic(random, 60, 3), isotonic(random, 1, 3)],
        "platt": [platt(random, 40, 1), platt(random, 60, 3), platt(random, 12, 1)],
        "ridge": [ridge(random, 30, 4, 1.0), ridge(random, 12, 3, 100.0)],
        "correlation": [correlation(random, 20), correlation(random, 5)],
    }
    cases = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"
        for name, cases in golden.items()
    )
    (HERE / "golden.json").write_text("{" + cases + "}\n")


if __name__ == "__main__":
    main()
