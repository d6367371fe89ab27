"""Building blocks of the architectures: the packed batch, attention, positions, activations, pooling."""
