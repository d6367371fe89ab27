"""The machine beneath: matrix products, devices, memory, threads."""
