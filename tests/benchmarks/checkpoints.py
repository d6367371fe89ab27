"""The checkpoints that are compared on, made on this machine once and kept.

    python tests/benchmarks/checkpoints.py [qwen3-0.6b-4bit | gemma-300m-4bit] FOLDER

writes two folders: the full shape in 4 bits with random weights, and the same weights as float32 for peers that do not
know MLX's quantization. MiniLM has its real weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
_VOCABULARY = 8000
# Ids below are special tokens and the bytes in the tokenizers of both models.
_FIRST_ID = 1000
_POOLING = {"qwen3-0.6b-4bit": (1024, "lasttoken"), "gemma-300m-4bit": (768, "mean")}
# As in the card of Qwen3-Embedding.
_PROMPTS = {
    "qwen3-0.6b-4bit": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
}
_PROMPTS_FILE = "config_sentence_transformers.json"


def find_minilm() -> Path:
    """Return the real MiniLM's checkpoint, fetched where needed."""
    from akidb_mlx_plugin.hub import ensure_model

    return ensure_model("minilm-l6-v2").folder


def find_onnx(work: Path, minilm: Path, python: str) -> Path:
    """Return MiniLM as an ONNX file in Chroma's layout; exported first where needed, by an interpreter with torch."""
    folder = work / "onnx_models" / "all-MiniLM-L6-v2" / "onnx"
    if not (folder / "vocab.txt").is_file():
        command = [python, "-m", "peers.export_onnx", str(minilm), str(folder)]
        _run(command)
    return folder


def find_full_shape(work: Path, name: str) -> tuple[Path, Path]:
    """Return a full shape in 4 bits and in float32; written first where needed."""
    quantized, plain = work / name, work / f"{name}-as-float32"
    prompted = name not in _PROMPTS or (plain / _PROMPTS_FILE).is_file()
    if not (quantized.is_dir() and plain.is_dir() and prompted):
        # In a process of its own: gigabytes pass through it.
        _run([sys.executable, str(HERE / "checkpoints.py"), name, str(work)])
    return quantized, plain


def _run(command: list[str]) -> None:
    result = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1] if result.stderr.strip() else f"{command} failed")


def write_full_shape(name: str, work: Path) -> None:
    """Write both folders; a name is there only when what it names is whole."""
    from full_shape import make_full_shape

    work.mkdir(parents=True, exist_ok=True)
    quantized, plain = work / name, work / f"{name}-as-float32"
    for folder in (quantized, plain):
        shutil.rmtree(folder, ignore_errors=True)
    scratch = work / f"{name}.part"
    shutil.rmtree(scratch, ignore_errors=True)
    make_full_shape(name, scratch)
    _write_tokenizer(name, scratch)
    _write_plain(name, scratch, work / f"{plain.name}.part")
    (work / f"{plain.name}.part").rename(plain)
    scratch.rename(quantized)


def _write_tokenizer(name: str, folder: Path) -> None:
    """Give a checkpoint a tokenizer whose tokens are about as long as those of the real one.

    One trained on the texts that are measured with: 4 characters to a token, where the bytes that a vocabulary without
    merges makes would be four times as many.
    """
    from full_shape import SHAPES
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from akidb_mlx_plugin.benchmarks.corpus import all_docstrings

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(all_docstrings(), trainer)
    model = json.loads(trained.to_str())["model"]
    first, last = SHAPES[name][-2:]
    special = {**first, **last}
    vocabulary = {token: _FIRST_ID + i for token, i in model["vocab"].items()} | special
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = " ".join([*first, "$A", *last])
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special.items()))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": next(iter(special))}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if name in _PROMPTS:
        prompts = {"prompts": {"query": _PROMPTS[name], "document": ""}, "default_prompt_name": None}
        (folder / _PROMPTS_FILE).write_text(json.dumps(prompts))


def _write_plain(name: str, folder: Path, target: Path) -> None:
    """Write a float32 copy in the layout of sentence-transformers."""
    import mlx.core as mx

    target.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    scheme = config.pop("quantization")
    del config["quantization_config"]
    tensors = mx.load(str(folder / "model.safetensors"))
    plain = {}
    for key, value in tensors.items():
        path = key.removesuffix(".weight")
        if f"{path}.scales" in tensors:
            scales, biases = (tensors[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            value = mx.dequantize(value, scales, biases, scheme["group_size"], scheme["bits"])
        if not key.endswith((".scales", ".biases")):
            plain[key] = value.astype(mx.float32)
    dense = {key: plain.pop(key) for key in list(plain) if key.startswith("dense.")}
    mx.save_safetensors(str(target / "model.safetensors"), plain, metadata={"format": "pt"})
    architecture = {"qwen3": "Qwen3ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}[config["model_type"]]
    (target / "config.json").write_text(json.dumps({**config, "architectures": [architecture], "dtype": "float32"}))
    for file in ("tokenizer.json", "tokenizer_config.json", *([_PROMPTS_FILE] if name in _PROMPTS else [])):
        shutil.copyfile(folder / file, target / file)
    _write_modules(name, target, list(dense.values()))


def _write_modules(name: str, target: Path, dense: list) -> None:
    """Write what comes behind the encoder: pooling, dense layers, unit length."""
    import mlx.core as mx

    dimension, mode = _POOLING[name]
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
    for path in paths:
        (target / path).mkdir(exist_ok=True)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (target / "modules.json").write_text(json.dumps(modules))
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": False}
    modes["pooling_mode_mean_tokens" if mode == "mean" else "pooling_mode_lasttoken"] = True
    pooling = {"word_embedding_dimension": dimension, **modes}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for i, weight in enumerate(dense, start=2):
        rows, columns = weight.shape
        settings = {"in_features": columns, "out_features": rows, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        (target / f"{i}_Dense" / "config.json").write_text(json.dumps(settings))
        mx.save_safetensors(str(target / f"{i}_Dense" / "model.safetensors"), {"linear.weight": weight})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(_POOLING))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_full_shape(options.name, options.folder)
