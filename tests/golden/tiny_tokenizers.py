"""Tokenizers of a few hundred entries, each of the kind and with the special tokens that its architecture uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_TEXT = """
the of and to in is was for that with as on by at from it an be are this which or not his but have they you
had their one were all more when there can if no out up who so time other into than only some could new about
them would may after first two any work over such year part most between through being many where much before
back still water light river stone paper music letter window garden morning evening summer winter city village
mountain forest island ocean bridge table chair answer question number system method result history science
"""
WORDS = _TEXT.split()
_SIZE = 320


def bert_tokenizer() -> Tokenizer:
    """WordPiece, lower case, [CLS] … [SEP]."""
    return _wrap(_word_piece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), "[CLS]", "[SEP]")


def mpnet_tokenizer() -> Tokenizer:
    """WordPiece, lower case, <s> … </s>, padding id 1."""
    return _wrap(_word_piece(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]), "<s>", "</s>")


def roberta_tokenizer() -> Tokenizer:
    """Byte-level BPE, <s> … </s>, padding id 1."""
    return _wrap(_byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), "<s>", "</s>")


def xlm_roberta_tokenizer() -> Tokenizer:
    """Unigram, <s> … </s>, padding id 1."""
    return _wrap(_unigram(["<s>", "<pad>", "</s>", "<unk>"]), "<s>", "</s>")


def t5_tokenizer() -> Tokenizer:
    """Unigram, … </s>, padding id 0."""
    return _wrap(_unigram(["<pad>", "</s>", "<unk>"]), None, "</s>")


def albert_tokenizer() -> Tokenizer:
    """Unigram, [CLS] … [SEP], padding id 0."""
    return _wrap(_unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]), "[CLS]", "[SEP]")


def modernbert_tokenizer() -> Tokenizer:
    """Byte-level BPE, [CLS] … [SEP]."""
    return _wrap(_byte_level(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]), "[CLS]", "[SEP]")


def qwen3_tokenizer(*, ends: bool = True) -> Tokenizer:
    """Byte-level BPE whose texts end with the padding token; upstream's first release did not end them."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _wrap(tokenizer, None, "<|endoftext|>" if ends else None)


def qwen3_reranker_tokenizer() -> Tokenizer:
    """Byte-level BPE with tokens for the answers yes and no; nothing around a text."""
    return _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ("yes", "no"))


def with_pairs(
    build: Callable[[], Tokenizer], opening: str, closing: str, *, separators: int = 1
) -> Callable[[], Tokenizer]:
    """Return a tokenizer's builder whose template joins pairs, with so many closing tokens between the texts."""

    def joined() -> Tokenizer:
        tokenizer = build()
        between = " ".join([closing] * separators)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{opening} $A {closing}",
            pair=f"{opening} $A {between} $B:1 {closing}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (opening, closing)],
        )
        return tokenizer

    return joined


def gemma_tokenizer(special: tuple[str, ...] = (), alphabet: str = "") -> Tokenizer:
    """BPE on characters, <bos> … <eos>; padding id 0, end id 1, beginning id 2, other special tokens from 4 on."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *special]
    trainer = trainers.BpeTrainer(vocab_size=_SIZE, special_tokens=names, initial_alphabet=list(alphabet))
    tokenizer.train_from_iterator([f"▁{word}" for word in WORDS * 3], trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _wrap(tokenizer, "<bos>", "<eos>")


def gemma2_tokenizer() -> Tokenizer:
    """As Gemma's, with tokens that stand for an image, a video and a sound, and for their beginnings and ends."""
    special = ("<|image|>", "<|video|>", "<|audio|>", "<|image>", "<image|>", "<|audio>", "<audio|>")
    # sentence-transformers finds out what a chat template puts behind a text by texts of digits.
    return gemma_tokenizer(special, "0123456789")


def lfm2_tokenizer() -> Tokenizer:
    """Byte-level BPE, <|startoftext|> before every text and nothing behind it; padding id 0, beginning id 1."""
    return _wrap(_byte_level(["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_end|>"]), "<|startoftext|>", None)


def llama_tokenizer() -> Tokenizer:
    """Byte-level BPE, <s> … </s>."""
    return _wrap(_byte_level(["<unk>", "<s>", "</s>"]), "<s>", "</s>")


def _word_piece(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(WORDS * 3, trainers.WordPieceTrainer(vocab_size=_SIZE, special_tokens=special))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _unigram(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=_SIZE, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _byte_level(special: list[str], beginnings: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_SIZE + 128, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*(f" {word}" for word in WORDS * 3), *beginnings * 20], trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer, first: str | None, last: str | None) -> Tokenizer:
    """Put special tokens around every text."""
    template = " ".join(part for part in (first, "$A", last) if part)
    special = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int, **special: str) -> None:
    """Save as transformers does: tokenizer.json, tokenizer_config.json, special_tokens_map.json."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **special)
    wrapped.save_pretrained(folder)
