"""`python -m akidb_mlx_plugin.cli`, for where the script is not on the path."""

from akidb_mlx_plugin.cli import main

main()
