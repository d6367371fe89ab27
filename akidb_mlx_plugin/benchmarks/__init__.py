"""Benchmarks of `akidb-mlx bench`: speed, latency, and behavior under load and over time, on real text."""
