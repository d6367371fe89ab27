"""Write a tiny `StaticEmbedding` and the vectors that sentence-transformers makes with it, as make_golden.py does.

python tests/golden/make_static.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from make_golden import texts_of
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_tokenizers import bert_tokenizer

HERE = Path(__file__).parent / "static_embedding"


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    tokenizer = bert_tokenizer()
    table = np.random.default_rng(7).normal(size=(tokenizer.get_vocab_size(), 24)).astype(np.float32)
    pipeline = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")
    pipeline.save(str(HERE / "pipeline"), create_model_card=False)
    # A text of no token has no mean.
    texts = [text for text in texts_of(tokenizer, (5, 21, 70, 300), 7) if text]
    (HERE / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "vectors.npz", document=pipeline.encode_document(texts, batch_size=1))


if __name__ == "__main__":
    main()
