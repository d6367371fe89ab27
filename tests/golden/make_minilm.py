"""Write minilm_texts.json.gz and minilm_vectors.npz: real texts and what sentence-transformers makes of them.

Run in an environment with torch and sentence-transformers, which the tests need not have:

    python tests/golden/make_minilm.py FOLDER_OF_ALL_MINILM_L6_V2
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import sys
import sysconfig
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
# Beside English prose: other scripts, code, markup, a single token, blanks and long words.
OTHERS = (
    "a",
    "?",
    "hello",
    " ",
    "\n\t ",
    "naïve café, Ångström, straße, ﬁne",
    "東京の天気はどうですか。今日は雨が降ります。",
    "Как мне отсортировать список словарей по ключу?",
    "كيف أقرأ ملفًا نصيًا سطرًا بسطر؟",
    "🙂🙃 emoji and e\u0301 combining marks",
    "SELECT name, COUNT(*) FROM users WHERE created_at > '2024-01-01' GROUP BY name HAVING COUNT(*) > 3;",
    '<p class="note">Der schnelle braune Fuchs springt über den faulen Hund.</p>',
    "https://example.org/a/b?c=d&e=f#g",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenfabrik",
    "x" * 150,
    "[CLS] a text [SEP] with the tokenizer's own [MASK] tokens [PAD]",
    "0 1 2 3.14159 -5e-10 1,000,000 0xDEADBEEF",
)


def docstrings(count: int, seed: int) -> list[str]:
    """Return docstrings of the standard library, evenly over their lengths."""
    found = set()
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) < 1800:
                    found.add(text)
    by_length = sorted(found, key=lambda text: (len(text), text))
    # Many docstrings are short: half of the sample is taken evenly over ranks, half evenly over lengths.
    ranks = np.linspace(0, len(by_length) - 1, count // 2).astype(int)
    wanted = np.linspace(1, 1800, count - count // 2)
    places = np.searchsorted([len(text) for text in by_length], wanted).clip(0, len(by_length) - 1)
    chosen = {by_length[i] for i in [*ranks, *places]}
    rest = [text for text in by_length if text not in chosen]
    random.Random(seed).shuffle(rest)
    return [*sorted(chosen), *rest[: count - len(chosen)]]


def main(folder: str) -> None:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    texts = [*OTHERS, *docstrings(580, seed=0)]
    random.Random(1).shuffle(texts)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    texts = [text for text, count in zip(texts, counts, strict=True) if count <= 402]
    # One text at a time, so that no padding takes part.
    vectors = SentenceTransformer(folder, device="cpu").encode(texts, batch_size=1, convert_to_numpy=True)
    # mtime=0: the same texts make the same file.
    data = json.dumps(texts, ensure_ascii=False, indent=0).encode()
    (HERE / "minilm_texts.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))
    np.savez_compressed(HERE / "minilm_vectors.npz", vectors=vectors.astype(np.float32))
    kept = [count for count in counts if count <= 402]
    print(f"{len(texts)} texts of {min(kept)} to {max(kept)} tokens, median {np.median(kept):.0f}")


if __name__ == "__main__":
    main(sys.argv[1])
