"""`python -m eval.harness run …`: the same as `leaplm lm-eval run …`."""

import sys

from leaplm import main

if __name__ == "__main__":
    sys.exit(main(["lm-eval", *sys.argv[1:]]))
