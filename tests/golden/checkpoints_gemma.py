"""Tiny checkpoints of EmbeddingGemma 2, and of Gemma 3 made to look both ways.

To make the whole EmbeddingGemma 2 anew takes pillow and torchvision too, for its processor.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tiny import GEMMA, GEMMA_SIZES, PROMPTS, SHORT, Tiny
from tiny_tokenizers import gemma2_tokenizer, gemma_tokenizer

_TEXT = {
    "vocab_size": 320,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_size_per_layer_input": 12,
    "embedding_dim": 36,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    # Of the layers that see everything.
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 3_000.0},
    },
}
_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "global_head_dim": 8,
    "position_embedding_size": 4,
    "patch_size": 2,
}
_AUDIO = {
    "model_type": "gemma4_audio",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "output_proj_dims": 8,
    "subsampling_conv_channels": [4, 4],
}
# As the real one's, it puts the prompt before the text and adds nothing.
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def _save_processor(folder: Path) -> None:
    """Add the processor of the whole model, by whose chat template sentence-transformers writes even plain texts."""
    t = transformers
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "video_token": "<|video|>"}
    names |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokenizer = t.AutoTokenizer.from_pretrained(folder, extra_special_tokens=names)
    parts = t.Gemma4AudioFeatureExtractor(), t.Gemma4ImageProcessor(), tokenizer, t.EmbeddingGemma2VideoProcessor()
    t.EmbeddingGemma2Processor(*parts, chat_template=_TEMPLATE).save_pretrained(folder)


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    t = transformers
    mean = {"pooling_mode": "mean"}
    tokens = {"image_token_id": 4, "video_token_id": 5, "audio_token_id": 6}
    whole = t.EmbeddingGemma2Config(text_config=_TEXT, vision_config=_VISION, audio_config=_AUDIO, **tokens)
    layers = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}
    return {
        "embedding_gemma2": Tiny(
            whole,
            gemma2_tokenizer,
            GEMMA,
            48,
            SHORT,
            mean,
            prompts=PROMPTS,
            dtype=torch.bfloat16,
            finish=_save_processor,
        ),
        "embedding_gemma2_text": Tiny(
            t.EmbeddingGemma2TextConfig(**{**_TEXT, "sliding_window": 30}, attention_bias=True),
            gemma2_tokenizer,
            GEMMA,
            48,
            (2, 21, 30, 31, 32, 33, 40, 48, 70),
            mean,
            texts=("the <|image|> of a river", "<|video|><|audio|> water"),
        ),
        "gemma3_text_is_causal": Tiny(
            t.Gemma3TextConfig(**GEMMA_SIZES, **layers, sliding_window=6, is_causal=False),
            gemma_tokenizer,
            GEMMA,
            48,
            SHORT,
            mean,
            dtype=torch.bfloat16,
        ),
        "gemma3_text_both_settings": Tiny(
            t.Gemma3TextConfig(
                **GEMMA_SIZES, **layers, sliding_window=8, is_causal=False, use_bidirectional_attention=True
            ),
            gemma_tokenizer,
            GEMMA,
            48,
            SHORT,
            mean,
            dtype=torch.bfloat16,
        ),
    }
