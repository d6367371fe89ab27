"""Texts to token rows: the tokenizer that transformers would make of a checkpoint folder."""
