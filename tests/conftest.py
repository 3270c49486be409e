"""One thread for torch and BLAS in the tests' own processes: small work is done sooner than threads meet."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
