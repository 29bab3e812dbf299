"""One MetaOptimize run against tuned schedules and every rival (docs/one-run.md): `make study`."""
