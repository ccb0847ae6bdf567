"""Our models under FSDP2: weights cut among two processes by torch's own fully_shard give what one process gives."""

import os
import subprocess
import sys

import pytest
from accelerate import DistributedType

from tests.training.harness import ROOT
from training.loop import check_whole


@pytest.mark.parametrize("kind", ["mtp", "flow", "denoiser"])
def test_two_sharded_processes_train_as_one_does(kind):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, "-m", "tests.training.sharded", kind], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to rounding" in done.stdout


def test_the_loop_refuses_weights_that_are_cut():
    with pytest.raises(ValueError, match=r"FSDP cuts the weights .* configs/accelerate/ddp.yaml"):
        check_whole(DistributedType.FSDP)
    for whole in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        check_whole(whole)
