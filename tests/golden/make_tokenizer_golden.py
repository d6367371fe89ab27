"""Write `tokenizers.json.gz`: small tokenizers as checkpoints bring them, and the token ids that transformers gives.

Run in an environment with transformers, which the tests need not have:

    python tests/golden/make_tokenizer_golden.py

Each case is a folder's files and, for every text, the ids of `AutoTokenizer` cut to `max_tokens`; for every prompt, how
many tokens sentence-transformers takes it for.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

FILE = Path(__file__).parent / "tokenizers.json.gz"
MAX_TOKENS = 14
PROMPTS = [
    "query: ",
    "The River",
    "passage [SEP]",
    "the old stone bridge runs by the river and the water and the light",
]
CORPUS = """The River runs by the old Stone Bridge and the naïve café of déjà vu. Water! light? 42 letters on 7 pages.
Über die Straße zur Brücke 日本語 東京 中国人 привет мир Москва مرحبا ΑΒΓΣ ßẞ İstanbul don't we'll query: passage"""
TEXTS = [
    "",
    " ",
    "a",
    "The River",
    "Boil The WATER, naïve café déjà vu",
    "日本語 東京 and 中国人x",
    "Привет МИР Москва",
    "ÜBER Straße ΑΒΓΣ İstanbul e\u0301 \u00e9 ﬁne",
    "  leading and  double   spaces ",
    "tab\tnew\nline\r\n",
    "[MASK] [CLS] [SEP] [PAD] [UNK] x",
    "<s> a </s> <pad> <mask> <unk>b",
    " <mask> x  <mask>y",
    "[DOC] water[DOC]x [doc]",
    "<|endoftext|>a <|im_end|>",
    "<image> river <IMAGE>",
    "<extra_id_0> t",
    "x</s>y[SEP]z<eos>",
    "don't we'll 1234",
    "☃ \U0001f600 zero\u200bwidth \x00\x07",
    "the river of the old stone bridge runs by the water light letters 42 and more words than the limit allows here",
]
BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
ROBERTA = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
MPNET = ROBERTA | {"unk_token": "[UNK]"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentences() -> list[str]:
    words = CORPUS.split()
    return [" ".join(random.Random(seed).sample(words, 8)) for seed in range(40)]


def framed(tokenizer: Tokenizer, first: str | None, last: str | None) -> Tokenizer:
    """Put special tokens around every text."""
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    template = [*([first] if first else []), "$A", *([last] if last else [])]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return tokenizer


def word_pieces(special: list[str], first: str, last: str) -> Tokenizer:
    """Cased, so that folding case shows."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    both = [*sentences(), *(line.lower() for line in sentences())]
    tokenizer.train_from_iterator(both, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    return framed(tokenizer, first, last)


def byte_level(special: list[str], *, words: str | None = None) -> Tokenizer:
    """Byte-level BPE; `words` is how texts are divided, where that is not GPT-2's way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def pieces(special: list[str], *, normalizer: Any = None) -> Tokenizer:
    """Sentencepiece with scores."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def merged_pieces(special: list[str], normalizer: Any) -> Tokenizer:
    """Sentencepiece with merges, and bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(sentences(), trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *BYTES]))
    return tokenizer


def tokenizers() -> dict[str, Tokenizer]:
    """Return a tokenizer of every kind."""
    spaces = normalizers.Replace(" ", "▁")
    qwen = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], words=PRETOKENIZE_REGEX)
    albert = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
        ]
    )
    return {
        "bert": word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]"),
        "mpnet": word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "<s>", "</s>"),
        "roberta": framed(byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), "<s>", "</s>"),
        "modernbert": framed(byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]), "[CLS]", "[SEP]"),
        "gpt2": byte_level(["<|endoftext|>"]),
        "qwen": framed(qwen, None, "<|endoftext|>"),
        "llama3": framed(byte_level(["<s>", "</s>"]), "<s>", None),
        "xlm_roberta": framed(pieces(["<s>", "<pad>", "</s>", "<unk>"]), "<s>", "</s>"),
        "t5": framed(pieces(["<pad>", "</s>", "<unk>"]), None, "</s>"),
        "albert": framed(pieces(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], normalizer=albert), "[CLS]", "[SEP]"),
        "gemma": framed(merged_pieces(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], spaces), "<bos>", "<eos>"),
        "llama": framed(
            merged_pieces(["<unk>", "<s>", "</s>"], normalizers.Sequence([normalizers.Prepend("▁"), spaces])),
            "<s>",
            None,
        ),
    }


def added(content: str, **properties: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content, **plain, "special": True, **properties}


def cases() -> list[tuple[str, str, str, dict[str, Any], dict[str, Any]]]:
    """Return (name, tokenizer, model type, tokenizer_config.json, other files); a file of None is left out."""
    old = {
        "special_tokens_map.json": BERT | {"additional_special_tokens": ["<image>"]},
        "added_tokens.json": {"[DOC]": 400},
    }
    bert = {"tokenizer_class": "BertTokenizer", **BERT}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", **BERT}
    doc = {"added_tokens_decoder": {"400": added("[DOC]", lstrip=True)}}
    loose = {"added_tokens_decoder": {"400": added("[DOC]", special=False, normalized=True, single_word=True)}}
    gone = {"tokenizer.json": None}
    roberta = {"tokenizer_class": "RobertaTokenizer", **ROBERTA}
    xlm = {"tokenizer_class": "XLMRobertaTokenizer", **ROBERTA}
    qwen = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    gemma = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "image_token": "<image>"}
    return [
        ("bert, named by nothing but its model type", "bert", "bert", {}, {"tokenizer_config.json": None}),
        ("bert, lower case by default", "bert", "bert", bert, {}),
        ("bert, lower case", "bert", "bert", bert | {"do_lower_case": True}, {}),
        ("bert, cased", "bert", "bert", bert | {"do_lower_case": False}, {}),
        ("bert, lower case with accents", "bert", "bert", bert | {"strip_accents": False}, {}),
        ("bert, cased without accents", "bert", "bert", bert | {"do_lower_case": False, "strip_accents": True}, {}),
        ("bert, Chinese characters in words", "bert", "bert", bert | {"tokenize_chinese_chars": False}, {}),
        ("bert, class of distilbert", "bert", "distilbert", {"tokenizer_class": "DistilBertTokenizerFast"}, {}),
        ("bert, class in config.json", "bert", "roberta", {}, {"config.json": {"tokenizer_class": "BertTokenizer"}}),
        ("plain class, which folds nothing", "bert", "bert", plain | {"do_lower_case": True}, {}),
        ("plain class, cut on the left", "bert", "bert", plain | {"truncation_side": "left"}, {}),
        ("bert, cut on the left", "bert", "bert", bert | {"truncation_side": "left"}, {}),
        ("bert, cut on the left by tokenizer.json", "bert", "bert", bert, {"truncation": "left"}),
        (
            "bert, cut on the right in spite of tokenizer.json",
            "bert",
            "bert",
            bert | {"truncation_side": "right"},
            {"truncation": "left"},
        ),
        ("plain class, an added token", "bert", "bert", plain | doc, {}),
        ("bert, an added token", "bert", "bert", bert | doc, {}),
        ("bert, an added word", "bert", "bert", bert | loose, {}),
        ("plain class, an added word", "bert", "bert", plain | loose, {}),
        (
            "plain class, extra special tokens",
            "bert",
            "bert",
            plain | {"extra_special_tokens": ["[DOC]", "<image>"]},
            {},
        ),
        ("plain class, named extra tokens", "bert", "bert", plain | {"extra_special_tokens": {"doc": "[DOC]"}}, {}),
        ("bert, additional special tokens", "bert", "bert", bert | {"additional_special_tokens": ["[DOC]"]}, {}),
        ("plain class, image_token", "bert", "bert", plain | {"image_token": "<image>"}, {}),
        ("bert, files of old", "bert", "bert", {"tokenizer_class": "BertTokenizer"}, old),
        ("plain class, files of old", "bert", "bert", {"tokenizer_class": "PreTrainedTokenizerFast"}, old),
        ("bert, special tokens split", "bert", "bert", bert | {"split_special_tokens": True}, {}),
        (
            "plain class, a token it pads with",
            "xlm_roberta",
            "bert",
            {"tokenizer_class": "PreTrainedTokenizerFast"},
            {"padding": "[PAD]"},
        ),
        ("bert, vocab.txt", "bert", "bert", bert, gone),
        ("bert, vocab.txt, cased", "bert", "bert", bert | {"do_lower_case": False}, gone),
        ("bert, vocab.txt, files of old", "bert", "bert", {}, gone | old),
        ("bert, vocab.txt alone", "bert", "bert", {}, gone | {"tokenizer_config.json": None}),
        ("mpnet", "mpnet", "mpnet", {"tokenizer_class": "MPNetTokenizer", **MPNET}, {}),
        ("mpnet, named by its model type", "mpnet", "mpnet", {}, {}),
        ("mpnet, vocab.txt", "mpnet", "mpnet", {"tokenizer_class": "MPNetTokenizer", **MPNET}, gone),
        ("roberta", "roberta", "roberta", roberta, {}),
        ("roberta, a space before", "roberta", "roberta", roberta | {"add_prefix_space": True}, {}),
        ("roberta, named by its model type", "roberta", "roberta", {}, {}),
        ("roberta, vocab.json and merges.txt", "roberta", "roberta", roberta, gone),
        (
            "roberta, vocab.json and merges.txt, a space before",
            "roberta",
            "roberta",
            roberta | {"add_prefix_space": True},
            gone,
        ),
        ("modernbert, a class that is ignored", "modernbert", "modernbert", bert, {}),
        ("xlm-roberta", "xlm_roberta", "xlm-roberta", xlm, {}),
        ("xlm-roberta in a bert", "xlm_roberta", "bert", xlm, {}),
        ("xlm-roberta, no space before", "xlm_roberta", "xlm-roberta", xlm | {"add_prefix_space": False}, {}),
        ("t5", "t5", "t5", {"tokenizer_class": "T5Tokenizer"}, {}),
        ("t5, three extra ids", "t5", "t5", {"tokenizer_class": "T5TokenizerFast", "extra_ids": 3}, {}),
        ("albert", "albert", "albert", {"tokenizer_class": "AlbertTokenizer"}, {}),
        ("albert, cased", "albert", "albert", {"tokenizer_class": "AlbertTokenizer", "do_lower_case": False}, {}),
        ("gemma", "gemma", "gemma3_text", gemma, {}),
        (
            "gemma, ends as it has them",
            "gemma",
            "gemma3_text",
            gemma | {"add_bos_token": True, "add_eos_token": True},
            {},
        ),
        ("llama", "llama", "llama", llama, {}),
        ("llama, legacy", "llama", "llama", llama | {"legacy": True}, {}),
        ("llama, no space before", "llama", "llama", llama | {"add_prefix_space": False}, {}),
        ("llama's class in a mistral, which is ignored", "llama", "mistral", llama, {}),
        ("llama 3, whose class is ignored", "llama3", "llama", llama, {}),
        ("qwen", "qwen", "qwen3", qwen, {}),
        ("qwen, named by its model type", "qwen", "qwen2", {}, {}),
        ("qwen, vocab.json and merges.txt", "qwen", "qwen3", qwen, gone),
        ("qwen, vocab.json and merges.txt, an end", "qwen", "qwen3", qwen | {"add_eos_token": True}, gone),
        ("gpt2", "gpt2", "gpt2", {}, {}),
        ("gpt2, vocab.json and merges.txt", "gpt2", "gpt2", {"tokenizer_class": "GPT2Tokenizer"}, gone),
    ]


def files_of(tokenizer: Tokenizer, model_type: str, config: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """Return a folder's files by name; an empty tokenizer.json stands for the tokenizer as it was made."""
    changed = Tokenizer.from_str(tokenizer.to_str())
    if "truncation" in other:
        changed.enable_truncation(99, direction=other["truncation"])
    if "padding" in other:
        changed.enable_padding(pad_token=other["padding"])
    files = {"config.json": {"model_type": model_type}, "tokenizer_config.json": config}
    for name, content in other.items():
        if name.endswith(".json") and name != "tokenizer.json":
            files[name] = content if content is None or name != "config.json" else files[name] | content
    written = {name: json.dumps(content, ensure_ascii=False) for name, content in files.items() if content is not None}
    if "tokenizer.json" not in other:
        return written | {"tokenizer.json": "" if changed.to_str() == tokenizer.to_str() else changed.to_str()}
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.model.save(scratch)
        return written | {file.name: file.read_text(encoding="utf-8") for file in Path(scratch).iterdir()}


def main() -> None:
    made = tokenizers()
    made["bert"].add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    found = []
    for name, kind, model_type, config, other in cases():
        files = files_of(made[kind], model_type, config, other)
        with tempfile.TemporaryDirectory() as scratch:
            for file, content in files.items():
                Path(scratch, file).write_text(content or made[kind].to_str(), encoding="utf-8")
            reference = AutoTokenizer.from_pretrained(scratch)
        ids = [reference(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] for text in TEXTS]
        lengths = []
        for prompt in PROMPTS:
            row = reference(prompt, truncation=True, max_length=MAX_TOKENS)["input_ids"]
            lengths.append(len(row) - (row[-1] in reference.all_special_ids))
        found.append({"name": name, "tokenizer": kind, "files": files, "ids": ids, "prompt_lengths": lengths})
        print(f"{name}: {type(reference).__name__}, {sum(map(len, ids))} tokens")
    result = {
        "max_tokens": MAX_TOKENS,
        "texts": TEXTS,
        "prompts": PROMPTS,
        "tokenizers": {name: tokenizer.to_str() for name, tokenizer in made.items()},
        "cases": found,
    }
    # No time in the header: the same cases make the same file.
    FILE.write_bytes(gzip.compress(json.dumps(result, ensure_ascii=False, indent=0).encode(), mtime=0))
    print(f"{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
