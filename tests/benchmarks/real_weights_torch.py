"""What sentence-transformers makes of texts, for `real_weights.py`, which runs this where torch is installed:

python tests/benchmarks/real_weights_torch.py CHECKPOINT FOLDER

FOLDER holds `texts.json`; `vectors.npz` is written beside it: `document` and `query`, float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer


def drop_tokens_without_row(model: SentenceTransformer) -> None:
    """Take added tokens out of the tokenizer that are past the end of the embedding table, where torch would fail."""
    rows = model[0].auto_model.get_input_embeddings().num_embeddings
    tokenizer = model.tokenizer
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in settings["added_tokens"] if token["id"] < rows]
    if len(kept) < len(settings["added_tokens"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**settings, "added_tokens": kept}))


def main(checkpoint: Path, folder: Path) -> None:
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"})
    drop_tokens_without_row(model)
    # One text at a time, so that no padding takes part.
    vectors = {
        "document": model.encode_document(texts, batch_size=1, show_progress_bar=False),
        "query": model.encode_query(texts, batch_size=1, show_progress_bar=False),
    }
    np.savez(folder / "vectors.npz", **{kind: value.astype(np.float32) for kind, value in vectors.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
