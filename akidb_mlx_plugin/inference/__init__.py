"""From texts to vectors: what lies between the texts and the encoder."""
