"""Compares `retort score DIR` with sentence-transformers' CrossEncoder(DIR) on 200 pairs.

    compare.py RETORT_BINARY EXPORT_DIR

The pairs are the same on every run for the same vocabulary. Exit status 1 when a score (under the
export's own activation) or a logit differs by more than 1e-4, or when CrossEncoder would truncate
at another length than the export was trained with.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

# Before the imports that read them: nothing here may reach out, or print a progress bar.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentence_transformers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers import CrossEncoder  # noqa: E402

PAIRS = 200
SEED = 42
TOLERANCE = 1e-4
# Below this spread all logits are as good as one number, and agreeing on it proves nothing.
LEAST_SPREAD = 10 * TOLERANCE
# What a vocabulary's plain words never exercise.
ODDITIES = [
    "naïve café Ångström ÜBER straße",
    "東京都 京都 漢字かな交じり文",
    "한국어 문장",
    "🙂 👩‍👩‍👧‍👦 🇳🇴",
    "3.14159 1,000,000 0x1F 50% $9.99",
    "«quotes» — dashes … (brackets) [more] {yet}",
    "e\u0301 combining, \u00a0no-break\u00a0 and \u200bzero-width",
    "double  spaces   and\ttabs\nand lines ",
    "http://example.invalid/a?b=c#d user@example.invalid",
    "Donaudampfschifffahrtsgesellschaftskapitän " + "x" * 150,
    "don't can't it's o'clock",
    "ИЗМЕРЕНИЕ и قياس and μέτρηση",
]
FIXED = [
    ("", ""),
    ("", "an empty query"),
    ("an empty document", ""),
    ("   ", " \t "),
    ("?", "!"),
]


def words_of(folder: Path) -> list[str]:
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = [w for w in vocabulary if w.isalpha() and not w.startswith("##")]
    return words or ["word"]


def text(random_: random.Random, words: list[str], length: int) -> str:
    chosen = random_.choices(words, k=length)
    for at in range(len(chosen)):
        roll = random_.random()
        if roll < 0.05:
            chosen[at] += random_.choice(".,;:!?")
        elif roll < 0.08:
            chosen[at] = chosen[at].upper()
        elif roll < 0.10:
            chosen[at] = str(random_.randrange(100_000))
        elif roll < 0.12:
            chosen[at] += random_.choice(words)
    return " ".join(chosen)


def make_pairs(words: list[str], max_length: int) -> list[tuple[str, str]]:
    """Documents from one word to three times `max_length`, evenly on a logarithmic scale."""
    random_ = random.Random(SEED)
    pairs = list(FIXED)
    for oddity in ODDITIES:
        pairs.append((oddity, text(random_, words, 12)))
        pairs.append((text(random_, words, 4), f"{oddity} {text(random_, words, 8)} {oddity}"))
    # Longest-first truncation differs from document-only truncation where the query is long too.
    for query_words, document_words in [(1, 3), (3, 1), (2, 2)]:
        long_query = text(random_, words, query_words * max_length)
        pairs.append((long_query, text(random_, words, document_words * max_length)))
    left = PAIRS - len(pairs)
    for at in range(left):
        length = round((3 * max_length) ** (at / (left - 1)))
        query = text(random_, words, random_.randint(1, 16))
        pairs.append((query, text(random_, words, length)))
    return pairs


def retort_scores(
    retort: str, folder: Path, pairs: list[tuple[str, str]]
) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.jsonl"
        with path.open("w", encoding="utf-8") as lines:
            for query, document in pairs:
                row = {"query": query, "document": document}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        with path.open("rb") as lines:
            done = subprocess.run(
                [retort, "score", str(folder)], stdin=lines, stdout=subprocess.PIPE, check=False
            )
    if done.returncode != 0:
        sys.exit(f"{retort} score {folder} ended with {done.returncode}")
    rows = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    if len(rows) != len(pairs):
        sys.exit(f"{retort} score printed {len(rows)} lines for {len(pairs)} pairs")
    return [row["logit"] for row in rows], [row["score"] for row in rows]


def cut(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def within_tolerance(
    name: str, got: list[float], want: list[float], pairs: list[tuple[str, str]]
) -> bool:
    # `not <=` and not `>`: a NaN on either side must fail.
    differences = [abs(g - w) for g, w in zip(got, want, strict=True)]
    wrong = [at for at, difference in enumerate(differences) if not difference <= TOLERANCE]
    print(f"  {name}: {min(want):.6f} to {max(want):.6f}, max |difference| {max(differences):.2e}")
    wrong.sort(key=lambda at: -differences[at] if differences[at] == differences[at] else -1e9)
    for at in wrong[:5]:
        query, document = pairs[at]
        print(
            f"    pair {at}: retort {got[at]:.7f}, sentence-transformers {want[at]:.7f}: "
            f"{cut(query)} / {cut(document)}"
        )
    if wrong:
        print(f"    {len(wrong)} of {len(pairs)} pairs differ by more than {TOLERANCE:g}")
    return not wrong


def main() -> int:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    retort, folder = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    max_length = settings["model_max_length"]

    encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    pairs = make_pairs(words_of(folder), max_length)
    # The tokenizer warns of the lengths that are the point here.
    transformers.logging.set_verbosity_error()
    uncut = encoder.tokenizer([query for query, _ in pairs], [document for _, document in pairs])
    lengths = [len(ids) for ids in uncut["input_ids"]]
    versions = [
        f"{package.__name__} {package.__version__}"
        for package in (sentence_transformers, transformers, torch)
    ]
    print(
        f"{', '.join(versions)}: {len(pairs)} pairs of {min(lengths)} to {max(lengths)} tokens, "
        f"{sum(length > max_length for length in lengths)} of them cut to {max_length}"
    )
    logits, scores = retort_scores(retort, folder, pairs)
    identity = torch.nn.Identity()
    want_scores = [float(v) for v in encoder.predict(pairs, show_progress_bar=False)]
    want_logits = [
        float(v)
        for v in encoder.predict(pairs, activation_fn=identity, show_progress_bar=False)
    ]

    equal = within_tolerance("score", scores, want_scores, pairs)
    equal &= within_tolerance("logit", logits, want_logits, pairs)
    if max(want_logits) - min(want_logits) < LEAST_SPREAD:
        print(f"  all logits lie within {LEAST_SPREAD:g}: this model cannot tell right from wrong")
        equal = False
    # Renamed in sentence-transformers 6.
    cuts_at = getattr(encoder, "max_seq_length", None) or encoder.max_length
    if cuts_at != max_length:
        print(f"  CrossEncoder cuts at {cuts_at} tokens, the export says {max_length}")
        equal = False
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
