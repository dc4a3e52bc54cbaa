"""Compares a base model's last hidden state in Retort with PyTorch's, on 64 texts.

    hidden_states.py PROGRAM [MODEL]

PROGRAM is hidden_states.rs, built; MODEL a folder or a name on the Hub, all-MiniLM-L6-v2 where it
is left out. The texts have 3 to 512 tokens and are the same on every run for the same vocabulary.
Exit status 1 when a number of a hidden state, or the logit of a new head on top, differs by more
than 2e-5.

Retort computes the texts in padded batches, the logits in passes without padding; PyTorch each text
by itself. PyTorch reads the hidden states off the model's own files and the logits off the weights
as Retort saved them.
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

import torch  # noqa: E402
import transformers  # noqa: E402
from compare import ODDITIES, text, words_of  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = 64
LONGEST = 512
SEED = 42
TOLERANCE = 2e-5


def make_texts(words: list[str]) -> list[str]:
    """From one word to more than `LONGEST` tokens, evenly on a logarithmic scale."""
    random_ = random.Random(SEED)
    texts = ["red", *ODDITIES, text(random_, words, LONGEST)]
    left = TEXTS - len(texts)
    for at in range(left):
        texts.append(text(random_, words, round(LONGEST ** (at / (left - 1)))))
    return texts


def retort(program: str, model: str, texts: list[str], out: Path) -> tuple[Path, dict]:
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run([program, model, str(out)], input=lines.encode("utf-8"), check=False)
    if done.returncode != 0:
        sys.exit(f"{program} ended with {done.returncode}")
    with safe_open(out / "outputs.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return Path(file.metadata()["folder"]), tensors


def main() -> int:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    program, model = sys.argv[1], (sys.argv[2:] or [DEFAULT_MODEL])[0]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        # A first look, for the vocabulary that the texts are made of.
        folder, _ = retort(program, model, ["red"], out)
        texts = make_texts(words_of(folder))
        folder, got = retort(program, model, texts, out)
        ranker = AutoModelForSequenceClassification.from_pretrained(out).eval()
    encoder = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    lengths, of_hidden, of_logits = [], [], []
    for at, line in enumerate(texts):
        inputs = tokenizer(line, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**inputs).last_hidden_state[0]
            logit = ranker(**inputs).logits[0, 0]
        if got[str(at)].shape != hidden.shape:
            print(f"  text {at}: {tuple(got[str(at)].shape)}, PyTorch {tuple(hidden.shape)}")
            return 1
        lengths.append(len(hidden))
        of_hidden.append((got[str(at)] - hidden).abs().max().item())
        of_logits.append((got["logits"][at] - logit).abs().item())

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{versions}: {len(texts)} texts of {min(lengths)} to {max(lengths)} tokens")
    equal = True
    for name, differences in [("last hidden state", of_hidden), ("logit", of_logits)]:
        worst = max(range(len(texts)), key=lambda at: differences[at])
        print(f"  {name}: max |difference| {differences[worst]:.2e}, at {lengths[worst]} tokens")
        # `all`, with `<=`, and not `max`: a NaN must fail.
        equal &= all(difference <= TOLERANCE for difference in differences)
    if (min(lengths), max(lengths), len(texts)) != (3, LONGEST, TEXTS):
        print(f"  these are not {TEXTS} texts of 3 to {LONGEST} tokens")
        equal = False
    print(f"hidden states: {'within' if equal else 'not within'} {TOLERANCE:g} of PyTorch's")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
