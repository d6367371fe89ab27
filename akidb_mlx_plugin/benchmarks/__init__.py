"""Measuring code behind `akidb-mlx bench`: speed, latency, behaviour under load and over time, on real text."""
