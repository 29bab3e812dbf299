"""How well laws predict published tables of real runs (docs/laws.md): `make laws DATA=DIR`."""
