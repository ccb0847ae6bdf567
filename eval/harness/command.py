"""`leaplm lm-eval …`: lm-eval's own command line, with our models registered and our tasks beside its own.

All that follows is lm-eval's, but for `--json FILE`, which keeps the scores as our records too.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from eval.records import keep_records, write_records

TASKS = Path(__file__).parents[1] / "tasks"
MISSING = "lm-eval is not installed: pip install 'leaplm[eval]'"


def run(argv: list[str]) -> None:
    options, json_file = _without_json(argv)
    try:
        import lm_eval.__main__ as harness
    except ImportError as error:
        raise ValueError(MISSING) from error
    import eval.harness.flow
    import eval.harness.mtp  # noqa: F401  (importing registers the models)

    harness.setup_logging()
    logging.getLogger("lm_eval.api.task").addFilter(_worth_saying)
    with _as_command(options):
        cli = harness.HarnessCLI()
        args = cli.parse_args()
        args.include_path = [str(TASKS), *_own_paths(args)]
        if args.command != "run" or json_file is None:
            cli.execute(args)
            return
        with TemporaryDirectory() as folder:
            args.output_path = args.output_path or folder
            before = _results(args.output_path)
            cli.execute(args)
            files = _results(args.output_path) - before
            results = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sorted(files)]
    _keep(results, json_file, ["leaplm", "lm-eval", *argv])


def _keep(results: list[dict], file: Path, command: list[str]) -> None:
    """By the first process alone, which has the results of all."""
    if not results or int(os.environ.get("RANK", 0)) > 0:
        return
    from eval.harness.records import harness_records

    records = harness_records(results[-1])
    write_records(file, command, records)
    run = next((r["run"] for r in records if r["run"]), None)
    if run:
        tasks = "-".join(dict.fromkeys(r["on"] for r in records))
        keep_records(str(run), f"lm-eval-{tasks[:80]}", command, records)


def _without_json(argv: list[str]) -> tuple[list[str], Path | None]:
    """The harness's own arguments, and the file after --json."""
    for at, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--json":
            width = 1 if equals else 2
            given = value if equals else " ".join(argv[at + 1 : at + 2])
            if not given or given.startswith("-"):
                raise ValueError("--json names a file: leaplm lm-eval run … --json scores.json")
            if Path(given).is_dir():
                raise ValueError(f"--json {given} is a folder: name a file")
            return argv[:at] + argv[at + width :], Path(given)
    return argv, None


def _own_paths(args) -> list[str]:
    """What the user includes, on the command line or in its --config."""
    asked = getattr(args, "include_path", None)
    if asked is None and getattr(args, "config", None):
        from lm_eval.config.evaluate_config import EvaluatorConfig

        asked = EvaluatorConfig.load_yaml_config(args.config).get("include_path")
    return [asked] if isinstance(asked, str) else list(asked or [])


def _results(path: str) -> set[str]:
    """Of every model, the files of results under lm-eval's output path, which may itself be named as a file."""
    asked = Path(path)
    found = asked.parent.glob(f"{asked.stem}_*.json") if asked.suffix == ".json" else asked.rglob("results_*.json")
    return {str(file) for file in found}


def _worth_saying(record: logging.LogRecord) -> bool:
    """lm-eval explains at every task with a data set of its own that it could be given arguments."""
    return "Custom kwargs can be passed" not in record.getMessage()


@contextmanager
def _as_command(argv: list[str]) -> Iterator[None]:
    """lm-eval reads the process's own arguments."""
    before, sys.argv = sys.argv, ["leaplm lm-eval", *argv]
    try:
        yield
    finally:
        sys.argv = before
