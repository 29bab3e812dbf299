"""How well laws predict published tables of real runs (docs/studies/laws/README.md): `make laws DATA=DIR`."""
