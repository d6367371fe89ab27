"""Write tiny seeded checkpoints of every architecture, and the vectors that sentence-transformers makes with them.

Run in an environment with torch and sentence-transformers, which the tests need not have:

    python tests/golden/make_golden.py [NAME ...]

Each folder gets `model/`, `texts.json` and `vectors.npz` (`document` and `query`, float32, one text at a time).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny import Tiny
from tiny_tokenizers import WORDS, save_tokenizer
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def checkpoints() -> dict[str, Tiny]:
    """Return all tiny checkpoints by name: those of every `checkpoints_*.py` beside this file."""
    found: dict[str, Tiny] = {}
    for file in sorted(HERE.glob("checkpoints_*.py")):
        found |= import_module(file.stem).checkpoints()
    return found


def fill(model: torch.nn.Module, seed: int, *, norms_around: float) -> None:
    """Give a model weights large enough that every part of it shows in the vectors; fresh ones hardly attend."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(norms_around + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.6 * noise / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.copy_(1.0 + 0.3 * torch.randn(buffer.shape, generator=generator))


def texts_of(tokenizer: Tokenizer, lengths: tuple[int, ...], seed: int) -> list[str]:
    """Return texts of about these numbers of tokens, special ones included, and a few odd ones."""
    rng = random.Random(seed)
    texts = ["", "a", "Naïve ☃ 日本", "the the the the", "Stone, paper; water? (river) 42"]
    for length in lengths:
        words = [rng.choice(WORDS)]
        while len(tokenizer.encode(" ".join(words)).ids) < length:
            words.append(rng.choice(WORDS))
        texts.append(" ".join(words))
    rng.shuffle(texts)
    return texts


def publish(folder: Path, tiny: Tiny) -> None:
    """Rewrite a checkpoint in the layout in which such are published."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config, tensors = tiny.publish(config, load_file(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")


def write(name: str, tiny: Tiny, seed: int) -> None:
    """Write one checkpoint's folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    auto = transformers.AutoModelForMaskedLM if "roberta" in name else transformers.AutoModelForCausalLM
    build = tiny.build or (auto if tiny.with_head else transformers.AutoModel).from_config
    model = build(tiny.config)
    # Gemma 3 adds one to the weights of its norms.
    fill(model, seed, norms_around=0.0 if "gemma3" in name else 1.0)
    with tempfile.TemporaryDirectory() as scratch:
        model.to(tiny.dtype).save_pretrained(scratch)
        tokenizer = tiny.tokenizer()
        save_tokenizer(tokenizer, Path(scratch), tiny.max_tokens, **tiny.special)
        if tiny.finish:
            tiny.finish(Path(scratch))
        encoder = Transformer(scratch, model_kwargs={"dtype": torch.float32})
        if encoder.max_seq_length != tiny.max_tokens:
            # Longer than the positions that the settings name.
            encoder.max_seq_length = tiny.max_tokens
        if not type(model).__module__.startswith("transformers."):
            # One of the references here: what transformers has loaded is another model. Built anew, for a narrow
            # format has rounded what is computed from the settings too, such as rotary frequencies.
            encoder.model = build(tiny.config).eval()
            encoder.model.load_state_dict(model.state_dict())
        settings = tiny.config.get_text_config()
        modules = [encoder, Pooling(getattr(settings, "embedding_dim", settings.hidden_size), **tiny.pooling)]
        modules += [Dense(**settings) for settings in tiny.dense]
        for i, layer in enumerate(modules[2:]):
            fill(layer, seed + 1 + i, norms_around=1.0)
        modules += [Normalize()] if tiny.normalize else []
        pipeline = SentenceTransformer(
            modules=modules, prompts=tiny.prompts, default_prompt_name=tiny.default_prompt, device="cpu"
        ).eval()
        pipeline.save(str(folder / "model"), create_model_card=False)
        # The weights as they were made: with their head, and in their own format.
        shutil.copy(f"{scratch}/model.safetensors", folder / "model" / "model.safetensors")
        settings = {**json.loads(Path(scratch, "config.json").read_text("utf-8")), **tiny.settings}
        (folder / "model" / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    if tiny.publish:
        publish(folder / "model", tiny)
    texts = [*texts_of(tokenizer, tiny.lengths, seed), *tiny.texts]
    vectors = {
        "document": pipeline.encode_document(texts, batch_size=1),
        "query": pipeline.encode_query(texts, batch_size=1),
    }
    assert all(np.isfinite(value).all() for value in vectors.values())
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(folder / "vectors.npz", **{k: v.astype(np.float32) for k, v in vectors.items()})
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {len(texts)} texts, {vectors['document'].shape[1]} dimensions, {size / 1024:.0f} KiB")


def main(names: list[str]) -> None:
    for name, tiny in checkpoints().items():
        if not names or name in names:
            write(name, tiny, zlib.crc32(name.encode()))


if __name__ == "__main__":
    main(sys.argv[1:])
