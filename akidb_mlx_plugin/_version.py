"""The version, in one place: the build and `akidb_mlx_plugin.__version__` read it."""

__version__ = "0.1.0"
