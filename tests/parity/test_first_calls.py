# A function's first call has the digits of every other call, in thousands of processes on a busy machine.
import os
import subprocess
import threading
import time

import pytest

from runs import BUILD

PROGRAM = BUILD / "tests" / "engine_tests"
SECONDS = 150


# Without settle_vector_math() (kernels/fused_dispatch.h) 17 of 2,595 such processes failed on two cores
# of a Xeon, three at a time, so about six here; with it none of 2,567.
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not PROGRAM.exists(), reason="build/tests/engine_tests is not built")
def test_the_first_call_of_a_function_has_all_its_digits():
    command = [PROGRAM, "--gtest_filter=Ranks/DocumentMasking.IsAttentionUnderADenseMask/1"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    failed, ended = [], time.monotonic() + SECONDS

    def again_and_again():
        while time.monotonic() < ended:
            result = subprocess.run(command, env=environment, capture_output=True, text=True)
            if result.returncode != 0:
                failed.append(result.stdout[-2000:])

    threads = [threading.Thread(target=again_and_again) for _ in range((os.cpu_count() or 1) + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
