import os
import platform
import subprocess
import sys

import pytest

# A thread of its own, as XLA's: it would have an arena of its own. Then what the second of two large pieces costs.
PROGRAM = """
import resource, sys, threading
import numpy as np
from retromae_jax import memory

def take_twice():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(2**28, np.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

faults = []
memory.keep_freed()
thread = threading.Thread(target=take_twice)
thread.start()
thread.join()
print(*faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
@pytest.mark.parametrize("platforms, is_kept", [("cpu", True), ("cuda", False)])
def test_what_is_freed_is_taken_again_without_a_page_fault(platforms, is_kept):
    # NumPy asks for huge pages, which hide how many pages there are.
    environment = os.environ | {"JAX_PLATFORMS": platforms, "NUMPY_MADVISE_HUGEPAGE": "0"}
    finished = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    first, second = map(int, finished.stdout.split())
    assert first > 50_000
    assert second < 1000 if is_kept else second > 50_000
