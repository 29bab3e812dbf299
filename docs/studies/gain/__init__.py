"""What a search costs until it has found a large model's best run (README.md beside this): `make gain DATA=DIR`."""
