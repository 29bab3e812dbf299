"""Settings that hold for every test: one thread for each process, for runs are deterministic per thread count."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
