"""What a search costs until it has found a large model's best run (docs/gain.md): `make gain DATA=DIR`."""
