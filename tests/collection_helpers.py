"""What the tests of collections and tables share: documents of each kind, and kills."""

from __future__ import annotations

import signal

import numpy as np
from host_helpers import run_python

from akidb_mlx_plugin import Document

# Ends the process for good 3 ms into the given write.
DIE_IN_WRITE = """
import os, signal, threading

def die_in_write(store, number):
    write, calls = store.write, []

    def dying(self, documents, vectors):
        calls.append(documents)
        if len(calls) == number:
            threading.Timer(0.003, os.kill, (os.getpid(), signal.SIGKILL)).start()
        write(self, documents, vectors)

    store.write = dying
"""


def run_killed(code: str, *arguments: object) -> None:
    """Run code that ends its process by SIGKILL."""
    run_python(DIE_IN_WRITE + code, *arguments, status=-signal.SIGKILL)


def mixed_documents(count: int, dimension: int) -> list[Document]:
    """Return documents of which one in 28 has a text, the next text and vector, and all others a vector."""
    vectors = np.random.default_rng(0).standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kinds = (
        lambda i: Document(id=f"d{i}", text=f"note {i}: how to write a {_THINGS[i // 28 % len(_THINGS)]}"),
        lambda i: Document(id=f"d{i}", text=f"text {i} of another model", vector=vectors[i], metadata={"n": i}),
    )
    return [
        kinds[i % 28](i) if i % 28 < 2 else Document(id=f"d{i}", vector=vectors[i], metadata={"n": i})
        for i in range(count)
    ]


_THINGS = ("poem", "parser", "letter to the mayor", "shopping list", "symphony", "unit test", "cooking recipe")


class EmbeddedByMock(list[str]):
    """The texts that the stand-in model has embedded."""
