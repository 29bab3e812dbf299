"""One MetaOptimize run against tuned schedules and every rival (docs/studies/one_run/short.md): `make study`."""
