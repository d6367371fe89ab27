"""What this package takes of the machine: its processors, its memory, and the kernels compiled for them."""
