"""The path that scripts import the tokenizer by; it lives in `inference.tokenizer`."""

from akidb_mlx_plugin.inference.tokenizer import TextTokenizer, TokenRows

__all__ = ["TextTokenizer", "TokenRows"]
