"""What every architecture is made of: the packed batch, attention, positions, activations, pooling."""
