"""From a checkpoint folder to an encoder with its pooling, prompts and lengths."""
