"""`python -m metaopt_hpo.cli` is `metaopt-hpo`."""

from metaopt_hpo.cli.app import main

if __name__ == "__main__":
    main()
