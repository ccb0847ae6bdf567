"""Where the time of a training step goes: `leaplm train PRESET --profile`.

Once what is set up at first use has been, five steps are traced. In the run's folder: profile/operations.txt, by the time
each takes itself; profile/trace.json, every call on a time line, for Perfetto or chrome://tracing.
"""

from pathlib import Path

import torch

WAIT, WARM, ACTIVE = 2, 1, 5


class Profiler:
    """folder: where to write; None: trace nothing. steps: that are left to train, of one process."""

    def __init__(self, folder: Path | None, steps: int) -> None:
        self.folder = folder
        self.profile: torch.profiler.profile | None = None
        if folder is None:
            return
        if steps < WAIT + WARM + ACTIVE:
            raise ValueError(f"--profile traces {ACTIVE} steps after {WAIT + WARM}: here {steps} are left to train")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        schedule = torch.profiler.schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1)
        self.profile = torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=self._write)
        self.profile.start()

    def step(self) -> None:
        """After every step of the training."""
        if self.profile is not None:
            self.profile.step()

    def close(self) -> None:
        if self.profile is not None:
            self.profile.stop()

    def _write(self, profile: torch.profiler.profile) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        own = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=own, row_limit=40, max_name_column_width=60)
        (self.folder / "operations.txt").write_text(f"{ACTIVE} steps\n{table}\n")
        profile.export_chrome_trace(str(self.folder / "trace.json"))
