"""Runs a page's blocks in order, in the folder it is started in: python tests/docs/driver.py PLAN.json

Shell blocks stop at the first command that fails; Python blocks of a page share their names.
"""

import json
import subprocess
import sys
import time
import traceback
from pathlib import Path


def main(plan: str) -> int:
    names: dict[str, object] = {"__name__": "__main__"}
    sys.path.insert(0, ".")
    for block in json.loads(Path(plan).read_text()):
        started = time.perf_counter()
        print(f"{block['where']} {block['kind']}", flush=True)
        if block["kind"] == "file":
            Path(block["file"]).write_text(block["code"])
        elif block["kind"] == "shell":
            code = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block["code"]], stdin=subprocess.DEVNULL
            ).returncode
            if code:
                print(f"{block['where']} failed with exit code {code}", flush=True)
                return 1
        else:
            try:
                exec(compile(block["code"], block["where"], "exec"), names)
            except Exception:
                traceback.print_exc()
                print(f"{block['where']} failed", flush=True)
                return 1
        print(f"{block['where']} took {time.perf_counter() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
