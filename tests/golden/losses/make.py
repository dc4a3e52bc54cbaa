"""Every loss and its gradient by PyTorch, for `crates/trainer/src/loss`.

    python -m venv venv
    venv/bin/pip install torch==2.15.0 numpy==2.4.6
    venv/bin/python tests/golden/losses/make.py

Written query by query as the definitions have it, in float64; gradients are autograd's. Writes
golden.json beside this script: losses that read one score a document, by the name that `[loss]` has
for them, and losses that read a logit a class.
"""

import json
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

MU = 10.0


def margin_mse(query, _):
    s, t, _, _ = query
    return mean_of_pairs(query, lambda i, j: ((s[i] - s[j]) - (t[i] - t[j])) ** 2)


def ranknet(query, _):
    s = query[0]
    return mean_of_pairs(query, lambda i, j: -logsigmoid(s[i] - s[j]))


def lambda_loss(query, _):
    s, t, grades, _ = query
    # Of two documents with one score, the one that the teacher likes less comes first.
    order = sorted(range(len(s)), key=lambda i: (-s[i].item(), t[i].item()))
    place = {document: rank for rank, document in enumerate(order, 1)}
    gains = 2.0**grades - 1.0
    best = sorted(gains.tolist(), reverse=True)
    ideal = sum(gain / discount(rank) for rank, gain in enumerate(best, 1))

    def of_pair(i, j):
        apart = abs(place[i] - place[j])
        delta = abs(1 / discount(apart) - 1 / discount(apart + 1))
        rho = abs(1 / discount(place[i]) - 1 / discount(place[j]))
        weight = (MU * delta + rho) * abs(gains[i] - gains[j]) / ideal
        return -weight * logsigmoid(s[i] - s[j]) / torch.log(torch.tensor(2.0, dtype=s.dtype))

    return mean_of_pairs(query, of_pair)


def discount(rank):
    return torch.log2(torch.tensor(1.0 + rank, dtype=torch.float64)).item()


def listnet(query, temperature):
    s, t, _, _ = query
    p = (t / temperature).softmax(0)
    return -(p * (s / temperature).log_softmax(0)).sum()


def kl(query, temperature):
    s, t, _, _ = query
    log_p = (t / temperature).log_softmax(0)
    log_q = (s / temperature).log_softmax(0)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()


def lce(query, temperature):
    s, t, _, _ = query
    return -(s / temperature).log_softmax(0)[t == t.max()].mean()


def adr_mse(query, _):
    s, t, _, _ = query
    approximate = 0.5 + torch.sigmoid(s[None, :] - s[:, None]).sum(1)
    above = (t[None, :] > t[:, None]).sum(1)
    tied = (t[None, :] == t[:, None]).sum(1)
    ranks = above + (tied + 1) / 2
    return ((approximate - ranks) ** 2 / torch.log2(ranks + 1)).mean()


def mse(s, t):
    return (s - t) ** 2


def bce(s, t):
    return binary_cross_entropy_with_logits(s, t.sigmoid(), reduction="none")


OF_DOCUMENTS = {"mse": mse, "bce": bce}
OF_PAIRS = {"margin_mse": margin_mse, "ranknet": ranknet, "lambda_loss": lambda_loss}
OF_LISTS = {"listnet": listnet, "kl": kl, "lce": lce, "adr_mse": adr_mse}


def pairs(query):
    """The pairs that the teacher tells apart, and what each weighs."""
    _, t, _, doubts = query
    told_apart = [(i, j) for i in range(len(t)) for j in range(len(t)) if t[i] > t[j]]
    return [(i, j, 1 / (1 + doubts[i] + doubts[j])) for i, j in told_apart]


def mean_of_pairs(query, loss):
    weighted = [weight * loss(i, j) for i, j, weight in pairs(query)]
    return torch.stack(weighted).sum() / sum(weight for _, _, weight in pairs(query))


def of_step(name, case, scores):
    tensors = [torch.tensor(case[key], dtype=torch.float64) for key in ("logits", "grades", "doubts")]
    if name in OF_DOCUMENTS:
        logits, _, doubts = tensors
        certainties = 1 / (1 + doubts)
        return (certainties * OF_DOCUMENTS[name](scores, logits)).sum() / certainties.sum()
    groups = torch.tensor(case["groups"])
    of_query = (OF_PAIRS | OF_LISTS)[name]
    losses, weights = [], []
    for group in groups.unique():
        query = [tensor[groups == group] for tensor in (scores, *tensors)]
        certainties = [weight for _, _, weight in pairs(query)]
        if certainties:
            losses.append(of_query(query, case["temperature"]))
            weights.append(sum(certainties) / len(certainties))
    weights = torch.stack(weights)
    return (weights * torch.stack(losses)).sum() / weights.sum()


def with_losses(case):
    losses = {}
    for name in OF_DOCUMENTS | OF_PAIRS | OF_LISTS:
        scores = torch.tensor(case["scores"], dtype=torch.float64, requires_grad=True)
        losses[name] = value_and_gradient(of_step(name, case, scores), scores)
    return case | {"losses": losses}


def value_and_gradient(loss, leaf):
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {"value": loss.item(), "gradient": gradient.flatten().tolist()}


def rounded(tensor):
    """Numbers that survive float32 as well as they can."""
    return [round(number, 3) for number in tensor.tolist()]


def a_step(name, seed, sizes, temperature, spread=1.5, doubt=0.0):
    """Queries of these sizes, their documents in any order; grades 0 to 3, of which some tie."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    groups = groups[torch.randperm(count, generator=generator)]
    grades = torch.rand(count, generator=generator) * 3
    grades = torch.where(torch.rand(count, generator=generator) < 0.4, grades.round(), grades)
    grades = torch.tensor(rounded(grades))
    share = (grades / 3).clamp(0.01, 0.99)
    noise = torch.randn(count, generator=generator) * spread
    return {
        "name": name,
        "temperature": temperature,
        "groups": groups.tolist(),
        "grades": rounded(grades),
        "logits": rounded((share / (1 - share)).log()),
        "doubts": rounded(torch.rand(count, generator=generator) * doubt),
        "scores": rounded(noise),
    }


def classes():
    generator = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(6, 4, generator=generator, dtype=torch.float64).mul(2)
    logits = [rounded(row) for row in draw()]
    reference = [rounded(row) for row in draw()]
    distributions = [rounded(row.softmax(0)) for row in draw()]
    for row in distributions:
        row[0] = round(1 - sum(row[1:]), 3)
    # A judge without any doubt.
    distributions[0] = [0.0, 0.0, 1.0, 0.0]
    case = {
        "classes": [0, 3, 1, 2, 2, 0],
        "preferred": [0, 3, 1, 2, 2, 0],
        "rejected": [1, 0, 2, 3, 0, 3],
        "beta": 0.1,
        "logits": logits,
        "reference": reference,
        "distributions": distributions,
    }
    p = torch.tensor(distributions, dtype=torch.float64)
    r = torch.tensor(reference, dtype=torch.float64).log_softmax(1)
    rows = range(len(logits))

    def preference(z):
        log_pi = z.log_softmax(1)
        gain = lambda chosen: log_pi[rows, chosen] - r[rows, chosen]
        return -logsigmoid(0.1 * (gain(case["preferred"]) - gain(case["rejected"]))).mean()

    def ordinal(z):
        q = z.softmax(1)
        losses = []
        for threshold in range(1, 4):
            p_at_least, q_at_least = p[:, threshold:].sum(1), q[:, threshold:].sum(1)
            q_below = q[:, :threshold].sum(1)
            losses.append(-(p_at_least * q_at_least.log() + (1 - p_at_least) * q_below.log()))
        return torch.stack(losses).sum(0).mean()

    functions = {
        "cross_entropy": lambda z: cross_entropy(z, torch.tensor(case["classes"])),
        "label_distribution": lambda z: cross_entropy(z, p),
        "ordinal": ordinal,
        "preference": preference,
    }
    losses = {}
    for name, function in functions.items():
        z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        losses[name] = value_and_gradient(function(z), z)
    return case | {"losses": losses}


def main():
    worked = {
        "name": "one query, as worked by hand",
        "temperature": 1.0,
        "groups": [0, 0, 0, 0],
        "grades": [3.0, 1.0, 0.0, 1.0],
        "logits": [3.0, 1.0, 0.0, 1.0],
        "doubts": [0.0] * 4,
        "scores": [2.0, 0.5, -1.0, 0.0],
    }
    tied = a_step("scores and judgements that tie, queries without a pair", 3, [4, 1, 3, 5], 1.0)
    of = lambda group: [i for i, g in enumerate(tied["groups"]) if g == group]
    for place in of(2):
        tied["grades"][place], tied["logits"][place] = 1.5, 0.0
    a, b, c, *_ = of(3)
    tied["scores"][a] = tied["scores"][b] = tied["scores"][c]
    cases = [
        worked,
        a_step("queries of several sizes", 1, [8, 2, 5, 3], 1.0),
        tied,
        a_step("a temperature and doubt", 2, [6, 4, 7], 2.0, doubt=2.5),
        a_step("far apart, and a low temperature", 4, [5, 5], 0.5, spread=30.0),
    ]
    cases = [json.dumps(with_losses(case)) for case in cases]
    text = '{"torch": %s,\n"steps": [\n%s\n],\n"classes": %s\n}\n'
    text %= (json.dumps(torch.__version__), ",\n".join(cases), json.dumps(classes()))
    Path(__file__).with_name("golden.json").write_text(text)


if __name__ == "__main__":
    main()
