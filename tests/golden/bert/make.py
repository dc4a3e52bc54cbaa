"""Makes the golden files beside it: a tiny random BERT reranker and what PyTorch computes with it.

    python -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0
    venv/bin/python tests/golden/bert/make.py

Writes, next to this script:
  config.json, model.safetensors   2 layers, 32 wide, 4 heads, one label, every parameter random
  tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.txt
                                   WordPiece over shop words, single letters and their ## pieces
  golden.json                      a batch as texts and as ids, its logits, losses and AdamW runs
  gradients_weighted.safetensors   d (logits * weights).sum() / d parameter, for every parameter
  gradients_loss.safetensors       d loss / d parameter, for every parameter

Everything is float32 on the CPU without dropout. The folder also serves other tests as a base
model. Run again only to change the files on purpose: another version may round differently.
"""

import json
import string
import sys
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import BertConfig, BertForSequenceClassification

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from steps import step_golden  # noqa: E402

WORDS = """
shop shoe shoes running boots red blue green black white kettle steel electric cotton shirt women
men kids size water bottle wireless head phone charger cable usb lamp desk chair office garden hose
coffee grinder beans tea cup plate knife set light small large waterproof jacket rain winter summer
bag back pack with for and the of in to how best cheap does fit return price
""".split()
PIECES = ["##s", "##ing", "##er", "##ed", "##phones", "##pack"]
CHARACTERS = string.ascii_lowercase + string.digits
VOCABULARY = list(
    dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,-'?!"]
        + list(CHARACTERS)
        + [f"##{character}" for character in CHARACTERS]
        + WORDS
        + PIECES
    )
)

# Two query groups of unequal size. Within the first, two documents tie: no pair between them.
PAIRS = [
    ("red running shoes", "Red running shoes for women, size 7", 3.2, 0),
    ("red running shoes", "Blue rain boots", -1.1, 0),
    ("red running shoes", "Shoe rack", -1.1, 0),
    ("red running shoes", "Waterproof running jacket with reflective strips in red and black", 0.4, 0),
    ("electric kettle", "Steel electric kettle 1.7 l", 2.5, 1),
    ("electric kettle", "Coffee grinder", -2.0, 1),
]
WEIGHTS = [0.7, -1.3, 0.4, 1.9, -0.6, 1.1]
TEXTS = ["wireless headphones", "usb cable", "How does the winter jacket fit? Best price!"]


def main():
    torch.manual_seed(20)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model()
    batch = encode(tokenizer, [(query, document) for query, document, _, _ in PAIRS])
    teacher = [score for _, _, score, _ in PAIRS]
    groups = [group for _, _, _, group in PAIRS]
    weights = torch.tensor(WEIGHTS)

    logits = model(**batch).logits.squeeze(1)
    weighted = (logits * weights).sum()
    weighted.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    write_gradients("gradients_weighted.safetensors", gradients)
    of_steps, gradients = step_golden(
        model, lambda: model(**batch).logits.squeeze(1), teacher, groups
    )
    write_gradients("gradients_loss.safetensors", gradients)

    texts = encode(tokenizer, TEXTS)
    hidden = model.bert(**batch).last_hidden_state
    golden = {
        "versions": {
            package.__name__: package.__version__
            for package in (torch, transformers, tokenizers, safetensors)
        },
        "queries": [query for query, _, _, _ in PAIRS],
        "documents": [document for _, document, _, _ in PAIRS],
        "weights": weights.tolist(),
        **{name: tensor.tolist() for name, tensor in batch.items()},
        "logits": logits.tolist(),
        "last_hidden_state_of_first_token": hidden[:, 0].tolist(),
        "weighted_sum": weighted.item(),
        **of_steps,
        "texts": TEXTS,
        "embeddings": embed(model, texts).tolist(),
    }
    write_json("golden.json", golden)


def make_tokenizer():
    vocabulary = {token: id for id, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(VOCABULARY[:5])
    tokenizer.save(str(HERE / "tokenizer.json"))
    special = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    write_json("special_tokens_map.json", special)
    write_json(
        "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64} | special,
    )
    (HERE / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def make_model():
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config).eval()
    # Far from the defaults (0.02; zeros; ones), or a swapped or forgotten parameter would not show.
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.2)
    model.save_pretrained(HERE)
    return model


def encode(tokenizer, inputs):
    encodings = tokenizer.encode_batch(inputs)
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "token_type_ids": torch.tensor([encoding.type_ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


def embed(model, batch):
    """The mean over real tokens of the last hidden state, at length one."""
    with torch.no_grad():
        hidden = model.bert(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(2)
    return normalize((hidden * mask).sum(1) / mask.sum(1))


def write_gradients(name, gradients):
    save_file(gradients, HERE / name, metadata={"format": "pt"})


def write_json(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n")


main()
