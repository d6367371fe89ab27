"""Read the JSON files next to a tokenizer: its class, special and added tokens, and truncation.

Source: transformers 5.24, `AutoTokenizer.from_pretrained` and `PreTrainedTokenizerBase._from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akidb_mlx_plugin.checkpoints.sentence_transformers import read_json
from akidb_mlx_plugin.errors import ModelNotFoundError

if TYPE_CHECKING:
    from tokenizers import AddedToken

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REMEDY = "save the folder again with transformers (AutoTokenizer.from_pretrained, then save_pretrained)"

# The class that transformers uses for a model type if the folder names none.
_MODELS_OF_CLASS = {
    "AlbertTokenizer": "albert",
    "BertTokenizer": "bert convbert distilbert electra ernie megatron-bert nomic_bert squeezebert",
    "GPT2Tokenizer": "codegen dbrx gpt2 gpt_neo gptj opt phi starcoder2",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma",
    "MPNetTokenizer": "mpnet",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe",
    "RobertaTokenizer": "bart longformer roberta roberta-prelayernorm",
    "T5Tokenizer": "mt5 switch_transformers t5",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 xlm-roberta xmod",
}
_CLASS_OF_MODEL = {model: kind for kind, models in _MODELS_OF_CLASS.items() for model in models.split()}
# Model types whose folders name the wrong class: transformers uses tokenizer.json unchanged.
_MODELS_AS_SAVED = """
arctic beam bigbird_pegasus ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe glm4_moe_lite gpt_bigcode granite
granitemoe granitemoehybrid granitemoeshared hyperclovax internlm2 internlm3 iquestcoder jamba kimi_linear
mimo_v2_flash minicpm3 minimax_m2 ministral ministral3 mistral mistral3 mixtral modernbert modernbert-decoder nemotron
nystromformer olmo2 olmo3 olmo_hybrid persimmon phi3 phimoe stablelm umt5 xlm-roberta-xl
"""
_AS_SAVED = frozenset(_MODELS_AS_SAVED.split())
# Model types for which it uses the class in the table above, whatever the folder names.
_ALWAYS_OF_MODEL = {"qwen2"}
# Classes that added beginning and end tokens by their settings before transformers 5, which follows tokenizer.json.
_ADDING_ENDS = {"CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer"}
_PATCHED = {"mistral", "mistral3", "ministral", "pixtral", "voxtral"}
# Pure Python classes, which process a text before consulting the vocabulary.
_CLASSES_IN_PYTHON = """
Bartpho BertGeneration BertJapanese Bertweet BioGpt BlenderbotSmall ByT5 CTRL Canine CpmAnt Cpm Esm FSMT Flaubert
GPTNeoXJapanese GPTSw3 M2M100 Marian PLBart Perceiver Phobert ProphetNet RoCBert Tapas XLM
"""
_IN_PYTHON = frozenset(f"{name}Tokenizer" for name in _CLASSES_IN_PYTHON.split())


# Classes that do unless `model_input_names` says otherwise; those of other names are aliases of these.
_NAMING_SEGMENTS = {
    "BertTokenizer",
    "ConvBertTokenizer",
    "ElectraTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
}


@dataclass(frozen=True)
class TokenizerSettings:
    """A folder's tokenizer settings.

    Attributes:
        kind: the class that transformers builds, without "Fast"; "" to use tokenizer.json unchanged.
        values: `tokenizer_config.json`, overridden by `special_tokens_map.json`.
        added: added tokens, by the ids they had when saved.
        complete: whether `added` is the whole list; otherwise those of tokenizer.json are added.
        adds_ends: whether the class that the folder names ever followed `add_bos_token` and `add_eos_token`.
    """

    kind: str
    values: Mapping[str, Any]
    added: Mapping[int, AddedToken | str] = field(default_factory=dict)
    complete: bool = False
    adds_ends: bool = False

    @property
    def names_segments(self) -> bool:
        """Whether transformers passes the model which text of a pair each token belongs to."""
        named = self.values.get("model_input_names")
        return "token_type_ids" in named if isinstance(named, list) else self.kind in _NAMING_SEGMENTS

    def sets(self, *keys: str) -> bool:
        """Return whether the folder sets any of these keys."""
        return any(self.values.get(key) is not None for key in keys)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean setting.

        Raises:
            ModelNotFoundError: it is not a boolean.
        """
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ModelNotFoundError(f"tokenizer_config.json: {key} is {value!r}, not true or false; {REMEDY}")
        return value


def read_tokenizer_settings(folder: Path) -> TokenizerSettings:
    """Read the files next to a tokenizer.

    Raises:
        ModelNotFoundError: one is damaged, or needs transformers' own code.
    """
    config, values = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
    model_type = str(config.get("model_type") or "")
    named = values.get("tokenizer_class") or config.get("tokenizer_class") or _CLASS_OF_MODEL.get(model_type, "")
    if not isinstance(named, str):
        raise ModelNotFoundError(f"tokenizer_config.json: tokenizer_class is {named!r}, not a name; {REMEDY}")
    named = named.removesuffix("Fast")
    kind = _find_kind(named, model_type)
    adds_ends = _has_known_code(values, kind) or named in _ADDING_ENDS
    _check_files(values, model_type)
    if values.get("additional_special_tokens") and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if not isinstance(values.get(key) or [], list | dict):
            raise ModelNotFoundError(f"tokenizer_config.json: {key} is {values[key]!r}, not a list; {REMEDY}")
    saved = values.get("added_tokens_decoder")
    if isinstance(saved, dict):
        added = {_id(number): to_token("added_tokens_decoder", token) for number, token in saved.items()}
        return TokenizerSettings(kind, values, added, complete=True, adds_ends=adds_ends)
    if saved is not None:
        raise ModelNotFoundError(f"tokenizer_config.json: added_tokens_decoder is not an object; {REMEDY}")
    # Before transformers 4.34 special and added tokens had their own files.
    for key, value in _read(folder / "special_tokens_map.json").items():
        if isinstance(value, dict) and "content" in value:
            value = to_token(key, {**value, "special": True})
        elif key == "extra_special_tokens" and isinstance(value, list):
            known = values.get(key) or []
            value = [*known, *(token for token in value if token not in known)]
        values[key] = value
    special = {str(to_token(key, values[key])) for key in NAMED_TOKENS if values.get(key)}
    special |= {str(to_token("extra_special_tokens", token)) for token in values.get("extra_special_tokens") or []}
    added = {}
    for content, number in _read(folder / "added_tokens.json").items():
        state = {"content": content, "normalized": content not in special, "special": content in special}
        added[_id(number)] = to_token("added_tokens.json", state)
    return TokenizerSettings(kind, values, added, adds_ends=adds_ends)


def is_token(value: Any) -> bool:
    """Return whether a setting's value is a token: a string, or an object with a token's properties."""
    return isinstance(value, str) or hasattr(value, "lstrip") or (isinstance(value, dict) and "content" in value)


def to_token(key: str, value: Any) -> AddedToken | str:
    """Return a token as in transformers: a string, or with properties if the file gives them.

    Raises:
        ModelNotFoundError: `value` is not a token.
    """
    from tokenizers import AddedToken

    if isinstance(value, (str, AddedToken)):
        return value
    try:
        state = {name: part for name, part in value.items() if name != "__type"}
        return AddedToken(state.pop("content"), **state)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelNotFoundError(
            f"tokenizer_config.json: {key} holds {value!r}, which is not a token; {REMEDY}"
        ) from error


def _find_kind(named: str, model_type: str) -> str:
    """Return the class that transformers uses; "" for tokenizer.json unchanged."""
    if model_type in _AS_SAVED:
        return ""
    kind = _CLASS_OF_MODEL[model_type] if model_type in _ALWAYS_OF_MODEL else named
    if kind in _IN_PYTHON:
        raise ModelNotFoundError(
            f"tokenizer_class {kind!r} is implemented in Python in transformers, which this package does not support"
        )
    return kind


def _has_known_code(values: Mapping[str, Any], kind: str) -> bool:
    """Return whether the folder has custom tokenizer code that is known only to add an end token.

    Raises:
        ModelNotFoundError: it has other custom code.
    """
    code = values.get("auto_map")
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code
    names = [name for name in (code if isinstance(code, list) else [code]) if name]
    # The code of gte-Qwen2, which makes add_eos_token work.
    if all(kind == "Qwen2Tokenizer" and "tokenization_qwen." in str(name) for name in names):
        return bool(names)
    raise ModelNotFoundError(
        f"tokenizer_config.json has auto_map: the tokenizer needs custom code ({names[-1]}), which this package does "
        "not run"
    )


def _check_files(values: Mapping[str, Any], model_type: str) -> None:
    """Reject settings that override tokenizer.json."""
    if values.get("fix_mistral_regex") and model_type in _PATCHED:
        raise ModelNotFoundError(
            "tokenizer_config.json: fix_mistral_regex is true, which changes how texts are split; load the tokenizer "
            "with transformers and save it again, so that tokenizer.json includes the change"
        )
    files = values.get("fast_tokenizer_files")
    if files and files != ["tokenizer.json"]:
        raise ModelNotFoundError(f"tokenizer_config.json: fast_tokenizer_files names {files!r}; {REMEDY}")


def _id(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ModelNotFoundError(f"an added token has {value!r} instead of an id; {REMEDY}") from error


def _read(file: Path) -> dict[str, Any]:
    """Return a file's JSON object; empty if there is no file."""
    return read_json(file) if file.is_file() else {}
