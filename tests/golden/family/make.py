"""Makes the folders beside it: a tiny random reranker of each architecture, and what PyTorch says.

    python -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0
    venv/bin/python tests/golden/family/make.py

Writes one folder an architecture, with
  config.json, model.safetensors   a few layers, 16 wide, 2 heads, one label, all parameters random
  tokenizer.json, tokenizer_config.json
                                   a tokenizer of the kind that published models of it have
  golden.json                      a batch as texts and as ids, its logits, losses and AdamW runs,
                                   embeddings of texts
  gradients_weighted.safetensors   d (logits * weights).sum() / d parameter, for every parameter
and bert-classes, which has three labels and is not trained.

Everything is float32 on the CPU without dropout. Run again only to change the files on purpose:
another version may round differently.
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

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from steps import step_golden  # noqa: E402

WORDS = """
red blue shoes boots running rain kettle steel electric jacket waterproof coffee grinder for with
and the in women size black
""".split()
CHARACTERS = string.ascii_lowercase + string.digits
PUNCTUATION = ".,?!"

PAIRS = [
    ("red running shoes", "Red running shoes for women, size 7"),
    ("red running shoes", "Blue rain boots"),
    ("rain jacket", "Waterproof running jacket with strips in red and black"),
    ("electric kettle", "Steel electric kettle 1.7 l"),
    ("", "Coffee grinder"),
]
WEIGHTS = [0.7, -1.3, 0.4, 1.9, -0.6]
# As if of two queries, with a tie: no pair between the tied.
TEACHER = [3.2, -1.1, -1.1, 2.5, -2.0]
GROUPS = [0, 0, 0, 1, 1]
TEXTS = ["coffee grinder", "rain", "How does the winter jacket fit? Best price!"]

SIZES = {"max_position_embeddings": 40, "initializer_range": 0.05}
BERT_SIZES = SIZES | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-5,
}


def main():
    torch.set_num_threads(1)
    wordpiece = make_wordpiece()
    bert_tokens = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    bert_tokens |= {"unk_token": "[UNK]", "mask_token": "[MASK]"}
    roberta_tokens = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    roberta_tokens |= {"bos_token": "<s>", "eos_token": "</s>"}
    roberta_tokens |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    byte_level = make_byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    byte_level.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    make(
        "bert-classes",
        transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=wordpiece.get_vocab_size(),
                id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
                label2id={"contradiction": 0, "entailment": 1, "neutral": 2},
                **BERT_SIZES | {"num_hidden_layers": 3, "num_attention_heads": 4},
            )
        ),
        wordpiece,
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True} | bert_tokens,
        trained=False,
    )
    make(
        "roberta",
        transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(
                vocab_size=byte_level.get_vocab_size(),
                num_labels=1,
                **BERT_SIZES | {"type_vocab_size": 1},
            )
        ),
        byte_level,
        {"tokenizer_class": "RobertaTokenizer"} | roberta_tokens,
        # The padding token as a text's own: its position is that of padding.
        literal="red <pad> shoes",
    )
    unigram = make_unigram()
    make(
        "xlm-roberta",
        transformers.XLMRobertaForSequenceClassification(
            transformers.XLMRobertaConfig(
                vocab_size=unigram.get_vocab_size(),
                num_labels=1,
                **BERT_SIZES | {"type_vocab_size": 1},
            )
        ),
        unigram,
        {"tokenizer_class": "XLMRobertaTokenizer"} | roberta_tokens,
        literal="red <pad> shoes",
    )
    make(
        "electra",
        transformers.ElectraForSequenceClassification(
            transformers.ElectraConfig(
                vocab_size=wordpiece.get_vocab_size(), num_labels=1, embedding_size=12, **BERT_SIZES
            )
        ),
        wordpiece,
        {"tokenizer_class": "ElectraTokenizer", "do_lower_case": True} | bert_tokens,
    )
    make(
        "distilbert",
        transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(
                vocab_size=wordpiece.get_vocab_size(),
                num_labels=1,
                dim=16,
                n_layers=2,
                n_heads=2,
                hidden_dim=24,
                **SIZES,
            )
        ),
        wordpiece,
        {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True} | bert_tokens,
    )
    byte_level = make_byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    byte_level.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    make(
        "modernbert",
        transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(
                vocab_size=byte_level.get_vocab_size(),
                num_labels=1,
                hidden_size=16,
                # Global, local, local, global.
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=20,
                # Three tokens to either side: less than any of the texts.
                local_attention=6,
                cls_token_id=1,
                bos_token_id=1,
                sep_token_id=2,
                eos_token_id=2,
                pad_token_id=3,
                **SIZES,
            )
        ),
        byte_level,
        {"tokenizer_class": "PreTrainedTokenizerFast"} | bert_tokens,
    )


def make(name, model, tokenizer, tokenizer_config, trained=True, literal=None):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    torch.manual_seed(20)
    model.eval()
    # Far from the defaults (0.02; zeros; ones), or a swapped or forgotten parameter would not show.
    for parameter_name, parameter in model.named_parameters():
        is_norm = "norm" in parameter_name.lower() and parameter_name.endswith("weight")
        torch.nn.init.normal_(parameter, float(is_norm), 0.3)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config | {"model_max_length": 32})

    batch = encode(model, tokenizer, PAIRS)
    logits = model(**inputs(model, batch)).logits
    golden = {
        "versions": {
            package.__name__: package.__version__
            for package in (torch, transformers, tokenizers, safetensors)
        },
        "pad_token_id": model.config.pad_token_id,
        "queries": [query for query, _ in PAIRS],
        "documents": [document for _, document in PAIRS],
        "weights": WEIGHTS,
        **{key: tensor.tolist() for key, tensor in batch.items()},
        "logits": logits.flatten().tolist(),
        "texts": TEXTS,
        "embeddings": embed(model, encode(model, tokenizer, TEXTS)).tolist(),
    }
    if trained:
        (logits.squeeze(1) * torch.tensor(WEIGHTS)).sum().backward()
        of_parameters = {name: parameter.grad for name, parameter in model.named_parameters()}
        path = folder / "gradients_weighted.safetensors"
        save_file(of_parameters, path, metadata={"format": "pt"})
        forward = lambda: model(**inputs(model, batch)).logits.squeeze(1)  # noqa: E731
        golden |= step_golden(model, forward, TEACHER, GROUPS)[0]
    if literal:
        row = encode(model, tokenizer, [("rain", literal)])
        golden["literal_padding"] = {
            "input_ids": row["input_ids"][0].tolist(),
            "logit": model(**inputs(model, row)).logits.item(),
        }
    if hasattr(model.config, "classifier_pooling"):
        model.config.classifier_pooling = "mean"
        golden["logits_of_mean"] = model(**inputs(model, batch)).logits.flatten().tolist()
    write_json(folder / "golden.json", golden)


def make_wordpiece():
    pieces = [f"##{character}" for character in CHARACTERS]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PUNCTUATION, *CHARACTERS]
    vocabulary = {token: id for id, token in enumerate(tokens + pieces + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(tokens[:5])
    return tokenizer


def make_byte_level(specials):
    """Byte-level BPE whose merges spell out the words, each with the space before it."""
    vocabulary = {token: id for id, token in enumerate(specials)}
    for character in "Ġ" + string.ascii_letters + string.digits + PUNCTUATION:
        vocabulary[character] = len(vocabulary)
    merges = []
    for word in WORDS:
        spelt = "Ġ"
        for character in word:
            merge = (spelt, character)
            spelt += character
            if spelt not in vocabulary:
                vocabulary[spelt] = len(vocabulary)
                merges.append(merge)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def make_unigram():
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = "▁" + string.ascii_letters + string.digits + PUNCTUATION
    vocabulary = [(token, 0.0) for token in specials]
    vocabulary += [(letter, -9.0) for letter in letters]
    vocabulary += [(f"▁{word}", -7.0 - len(word) / 10) for word in WORDS]
    vocabulary.append(("<mask>", 0.0))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens([*specials, "<mask>"])
    return tokenizer


def encode(model, tokenizer, texts):
    pad = model.config.pad_token_id
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    encodings = tokenizer.encode_batch(texts)
    tokenizer.no_padding()
    return {
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "token_type_ids": torch.tensor([encoding.type_ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }


def inputs(model, batch):
    """Without the segments for what reads none."""
    if model.config.model_type in ("bert", "electra"):
        return batch
    return {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}


def embed(model, batch):
    """The mean over real tokens of the last hidden state, at length one."""
    with torch.no_grad():
        hidden = model.base_model(**inputs(model, batch)).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(2)
    return normalize((hidden * mask).sum(1) / mask.sum(1))


def write_json(path, value):
    path.write_text(json.dumps(value) + "\n")


main()
