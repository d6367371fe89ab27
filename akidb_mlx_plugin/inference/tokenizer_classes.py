"""Build tokenizers like transformers' tokenizer classes, from a vocabulary and settings.

In transformers 5 a class builds its own normalizer, pre-tokenizer and usually its own template. From tokenizer.json it
takes only the vocabulary, the table of a sentencepiece normalizer, and the template if it has none. In 4.x it took all
of tokenizer.json and applied its settings.

Source: `models/*/tokenization_*.py` of transformers 5.24, `tokenization_*_fast.py` of 4.57.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer_models import as_bpe, as_unigram, as_word_piece, read_state
from akidb_mlx_plugin.inference.tokenizer_settings import REMEDY, TokenizerSettings

NamedTokens = Mapping[str, AddedToken | str | None]

# Qwen's pre-tokenization pattern, from its tokenizer.json files.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BERT_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


@dataclass(frozen=True)
class TokenizerClass:
    """One of transformers' classes.

    Attributes:
        build: replaces the model, normalizer and pre-tokenizer of tokenizer.json, like 5.x.
        adapt: applies the settings to a tokenizer from tokenizer.json, like 4.x; returns whether it could.
        tokens: its default special tokens.
        template: names of the tokens that open and close a text; None to keep tokenizer.json's.
        vocabulary: files to read if there is no tokenizer.json.
        mask_takes_space: whether a mask token given only by name strips the space before it.
        plain_tokens: whether its special tokens strip no spaces, whatever the folder says.
        separators: closing tokens between the two texts of a pair.
    """

    build: Callable[[Tokenizer, TokenizerSettings, NamedTokens], None]
    adapt: Callable[[Tokenizer, TokenizerSettings], bool]
    tokens: Mapping[str, str | None]
    template: tuple[str | None, str] | None = None
    vocabulary: tuple[str, ...] = ()
    mask_takes_space: bool = False
    plain_tokens: bool = False
    separators: int = 1

    def read_vocabulary(self, folder: Path, named: NamedTokens) -> Tokenizer:
        """Return a tokenizer with only a folder's vocabulary."""
        files = [str(folder / name) for name in self.vocabulary]
        if len(files) == 1:
            return Tokenizer(models.WordPiece.from_file(files[0], unk_token=str(named["unk_token"])))
        return Tokenizer(models.BPE.from_file(files[0], files[1]))

    def set_template(self, tokenizer: Tokenizer, named: NamedTokens) -> None:
        """Add the class's own special tokens around every text; they must already be in the vocabulary."""
        if self.template:
            opening, closing = (str(named[name]) if name else None for name in self.template)
            surround(tokenizer, opening, closing, separators=self.separators)


def surround(tokenizer: Tokenizer, opening: str | None, closing: str | None, *, separators: int = 1) -> None:
    """Add tokens before and after every text.

    Args:
        tokenizer: to change.
        opening, closing: the tokens; None for none.
        separators: closing tokens between the texts of a pair.
    Raises:
        ModelNotFoundError: the tokenizer does not have them.
    """
    ends = [(token, tokenizer.token_to_id(token)) for token in (opening, closing) if token]
    for token, number in ends:
        if number is None:
            raise ModelNotFoundError(f"the tokenizer has no token {token!r}, which every text needs; {REMEDY}")
    pieces = [*([opening] if opening else []), "$A", *([closing] if closing else [])]
    second = [*([closing] * (separators - 1) if closing else []), "$B:1", *([f"{closing}:1"] if closing else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, pair=[*pieces, *second], special_tokens=ends
    )


def _build_bert(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    tokenizer.model = as_word_piece(tokenizer.model, str(named["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, **_bert_flags(settings))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _adapt_bert(tokenizer: Tokenizer, settings: TokenizerSettings) -> bool:
    if not isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        return not settings.sets("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    cleans = read_state(tokenizer.normalizer)["clean_text"]
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=cleans, **_bert_flags(settings))
    return True


def _bert_flags(settings: TokenizerSettings) -> dict[str, Any]:
    return {
        "handle_chinese_chars": settings.flag("tokenize_chinese_chars", True),
        # By default, accents are stripped if text is lowercased.
        "strip_accents": settings.flag("strip_accents", True) if settings.sets("strip_accents") else None,
        "lowercase": settings.flag("do_lower_case", True),
    }


def _build_byte_level(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    tokenizer.model = as_bpe(tokenizer.model)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.flag("add_prefix_space", False))


def _adapt_byte_level(tokenizer: Tokenizer, settings: TokenizerSettings) -> bool:
    prefix = _optional_flag(settings, "add_prefix_space", False)
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer.add_prefix_space = prefix
        return True
    return not prefix


def _adapt_by(*keys: str) -> Callable[[Tokenizer, TokenizerSettings], bool]:
    """Return an `adapt` for a class that cannot apply these settings: it succeeds only if none of them is set."""
    return lambda tokenizer, settings: not settings.sets(*keys)


def _build_qwen(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    tokenizer.model = as_bpe(tokenizer.model)
    tokenizer.normalizer = normalizers.NFC()
    prefix = _optional_flag(settings, "add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )


def _build_gemma(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    tokenizer.model = as_bpe(tokenizer.model, unknown=str(named["unk_token"]), fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")


def _build_llama(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    tokenizer.model = as_bpe(tokenizer.model, fallback=True)
    tokenizer.normalizer = None
    first = "always" if settings.values.get("legacy") is True else "first"
    scheme = first if _optional_flag(settings, "add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)


def _build_xlm_roberta(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    _build_pieces(tokenizer, 3, prefix=settings.flag("add_prefix_space", True))


def _build_t5(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    _build_pieces(tokenizer, 2)


def _build_albert(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    table = _sentencepiece_table(tokenizer.normalizer)
    _build_pieces(tokenizer, 1, prefix=settings.flag("add_prefix_space", True))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence([*steps, *([table] if table else [])])


def _build_pieces(tokenizer: Tokenizer, unknown_id: int, *, prefix: bool = True) -> None:
    """Set the components of a sentencepiece unigram model."""
    tokenizer.model = as_unigram(tokenizer.model, unknown_id)
    tokenizer.normalizer = _sentencepiece_table(tokenizer.normalizer)
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always" if prefix else "never")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])


def _sentencepiece_table(normalizer: Any) -> normalizers.Precompiled | None:
    """Return the sentencepiece character table in a normalizer, if any."""
    if normalizer is None:
        return None
    state = read_state(normalizer)
    for step in state["normalizers"] if state["type"] == "Sequence" else [state]:
        if step["type"] == "Precompiled":
            return normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))
    return None


def _optional_flag(settings: TokenizerSettings, key: str, default: bool) -> bool:
    """Return a flag that may be null, which means the default."""
    return default if settings.values.get(key) is None else settings.flag(key, default)


_FRAME = ("cls_token", "sep_token")
_MERGES = ("vocab.json", "merges.txt")
_END_OF_TEXT = "<|endoftext|>"
_BERT = TokenizerClass(_build_bert, _adapt_bert, _BERT_TOKENS, _FRAME, ("vocab.txt",))
_MPNET_TOKENS = _ROBERTA_TOKENS | {"unk_token": "[UNK]"}
_ROBERTA = TokenizerClass(_build_byte_level, _adapt_byte_level, _ROBERTA_TOKENS, _FRAME, _MERGES, separators=2)
_GPT2_TOKENS = dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT) | {"pad_token": None}
_QWEN_TOKENS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT)
_GEMMA_TOKENS = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")}
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_ALBERT_TOKENS = _BERT_TOKENS | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"}

TOKENIZER_CLASSES = {
    **dict.fromkeys(("BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _BERT),
    **dict.fromkeys(("LxmertTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"), _BERT),
    "MPNetTokenizer": TokenizerClass(
        _build_bert, _adapt_bert, _MPNET_TOKENS, _FRAME, _BERT.vocabulary, mask_takes_space=True, separators=2
    ),
    **dict.fromkeys(("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"), _ROBERTA),
    "GPT2Tokenizer": TokenizerClass(_build_byte_level, _adapt_byte_level, _GPT2_TOKENS, None, _MERGES),
    "Qwen2Tokenizer": TokenizerClass(_build_qwen, _adapt_byte_level, _QWEN_TOKENS, None, _MERGES, plain_tokens=True),
    "GemmaTokenizer": TokenizerClass(_build_gemma, _adapt_by(), _GEMMA_TOKENS),
    "LlamaTokenizer": TokenizerClass(_build_llama, _adapt_by("add_prefix_space", "legacy"), _LLAMA_TOKENS),
    "XLMRobertaTokenizer": TokenizerClass(
        _build_xlm_roberta,
        _adapt_by("add_prefix_space"),
        _ROBERTA_TOKENS,
        ("bos_token", "eos_token"),
        separators=2,
    ),
    "T5Tokenizer": TokenizerClass(_build_t5, _adapt_by(), _T5_TOKENS, (None, "eos_token")),
    "AlbertTokenizer": TokenizerClass(
        _build_albert, _adapt_by("add_prefix_space", "do_lower_case", "keep_accents"), _ALBERT_TOKENS, _FRAME
    ),
}
