"""Makes golden.json beside it: labels, gold gains, and what others compute of them.

    python -m venv venv
    venv/bin/pip install scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 pytrec_eval-terrier==0.5.11
    venv/bin/python tests/golden/audit/make.py

The labels are random, with ties on purpose: in the expected grade, in the likeliest grade, and
queries that have one gain alone. nDCG is scikit-learn's, which gives tied documents the mean of
their orders; on the queries without ties it must be trec_eval's. Run again only to change the file
on purpose.
"""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytrec_eval
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score, ndcg_score, roc_auc_score

HERE = Path(__file__).resolve().parent
TOP_GRADE = 3
BINS = 10


def made_up(random):
    """Labels of 40 queries with 2 to 24 documents, and their gains from 0 to 3."""
    labels, qrels = [], {}
    for query in range(40):
        query_id = f"q{query:02}"
        qrels[query_id] = {}
        for document in range(int(random.integers(2, 25))):
            gain = int(random.choice(4, p=[0.5, 0.2, 0.2, 0.1])) if query % 8 else 0
            sharpness = random.choice([2.0, 8.0])
            weights = random.gamma(0.6 + sharpness * (np.arange(4) == gain))
            # One decimal makes ties, four hardly any.
            decimals = 1 if query % 3 == 0 else 4
            cuts = [0.0, *np.round(np.cumsum(weights / weights.sum()), decimals).tolist()]
            probabilities = [round(high - low, decimals) for low, high in zip(cuts, cuts[1:])]
            grade = 0.0
            for level, probability in enumerate(probabilities):
                grade += level * probability
            document_id = f"d{document:02}"
            if gain or random.random() < 0.5:
                qrels[query_id][document_id] = gain
            labels.append({
                "query_id": query_id,
                "document_id": document_id,
                "probabilities": probabilities,
                "grade": grade,
                "mass": round(float(1 - random.beta(1, 20)), 6),
            })
    return labels, qrels


def order(queries, score, relevant_gain):
    """What an order by `score` is worth: queries are lists of (label, gain)."""
    aucs, ndcgs, taus, right, of = [], [], [], 0.0, 0
    everything, positive = [], []
    for query in queries:
        scores = [score(label) for label, _ in query]
        gains = [gain for _, gain in query]
        relevant = [gain >= relevant_gain for gain in gains]
        everything += scores
        positive += relevant
        if any(relevant) and not all(relevant):
            aucs.append(roc_auc_score(relevant, scores))
        if any(gains):
            worth = [2**gain - 1 for gain in gains]
            # scikit-learn refuses a single document.
            ndcgs.append(ndcg_score([worth], [scores], k=10) if len(worth) > 1 else 1.0)
            if len(set(scores)) == len(scores):
                assert abs(ndcgs[-1] - of_trec_eval(worth, scores)) < 1e-9
        if len(set(scores)) > 1 and len(set(gains)) > 1:
            taus.append(kendalltau(scores, gains, variant="b").statistic)
        for (a, gain_a), (b, gain_b) in combinations(zip(scores, gains), 2):
            if gain_a != gain_b:
                of += 1
                right += 0.5 if a == b else float((a > b) == (gain_a > gain_b))
    return {
        "auc": np.mean(aucs),
        "auc_pooled": roc_auc_score(positive, everything),
        "pair_order": right / of,
        "ndcg": np.mean(ndcgs),
        "tau": np.mean(taus),
    }


def of_trec_eval(worth, scores):
    """nDCG@10 of documents with these gains, as trec_eval has it."""
    documents = [f"d{place}" for place in range(len(worth))]
    judged = {"q": dict(zip(documents, worth))}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"})
    run = {"q": dict(zip(documents, map(float, scores)))}
    return evaluator.evaluate(run)["q"]["ndcg_cut_10"]


def calibration_error(said, relevant):
    """The expected calibration error over bins of the same width."""
    said, relevant = np.array(said), np.array(relevant, dtype=float)
    places = np.minimum((said * BINS).astype(int), BINS - 1)
    off = 0.0
    for place in range(BINS):
        inside = places == place
        if inside.any():
            off += inside.mean() * abs(said[inside].mean() - relevant[inside].mean())
    return off


def probability(label, relevant_grade):
    total = 0.0
    for value in label["probabilities"][relevant_grade:]:
        total += value
    return total


def case(labels, qrels, settings, relevant_grade, relevant_gain):
    """What an audit must find."""
    by_query, unlisted = {}, 0
    for label in labels:
        gains = qrels[label["query_id"]]
        if label["document_id"] not in gains:
            unlisted += 1
            if settings["unlisted"] == "skip":
                continue
        gain = gains.get(label["document_id"], 0)
        by_query.setdefault(label["query_id"], []).append((label, gain))
    queries = list(by_query.values())
    pairs = [pair for query in queries for pair in query]
    top_gain = max(gain for gains in qrels.values() for gain in gains.values())
    hard = [int(np.argmax(label["probabilities"])) for label, _ in pairs]
    gains = [gain for _, gain in pairs]
    relevant = [gain >= relevant_gain for gain in gains]
    if top_gain == TOP_GRADE:
        kappa_of = "grades"
        kappa = cohen_kappa_score(hard, gains, weights="quadratic")
    else:
        kappa_of = "binarised"
        kappa = cohen_kappa_score(
            [grade >= relevant_grade for grade in hard], relevant, weights="quadratic"
        )
    masses = [label["mass"] for label in labels]
    said = [probability(label, relevant_grade) for label, _ in pairs]
    return {
        "settings": settings,
        "qrels": qrels,
        "expected": {
            "pairs": len(pairs),
            "queries": len(queries),
            "unlisted": unlisted,
            "relevant_grade": relevant_grade,
            "relevant_gain": relevant_gain,
            "kappa_of": kappa_of,
            "kappa": kappa,
            "soft": order(queries, lambda label: label["grade"], relevant_gain),
            "hard": order(
                queries, lambda label: int(np.argmax(label["probabilities"])), relevant_gain
            ),
            "calibration_error": calibration_error(said, relevant),
            "likeliest": np.bincount(
                [int(np.argmax(label["probabilities"])) for label in labels], minlength=4
            ).tolist(),
            "mass": np.quantile(masses, [0, 0.01, 0.5]).tolist(),
        },
    }


def main():
    labels, qrels = made_up(np.random.default_rng(42))
    binary = {
        query: {document: int(gain >= 2) for document, gain in gains.items()}
        for query, gains in qrels.items()
    }
    golden = {
        "top_grade": TOP_GRADE,
        "labels": labels,
        "cases": [
            case(labels, qrels, {"unlisted": "zero"}, 2, 2),
            case(labels, qrels, {"unlisted": "zero", "relevant_grade": 1}, 1, 1),
            case(labels, binary, {"unlisted": "skip"}, 2, 1),
        ],
    }
    rows = ",\n".join(json.dumps(label) for label in golden.pop("labels"))
    rest = json.dumps(golden)
    (HERE / "golden.json").write_text(f'{{"labels": [\n{rows}\n],\n{rest[1:]}\n')


if __name__ == "__main__":
    main()
