"""From texts to vectors: everything around the encoder."""
