"""leaplm's command line: one subcommand for each thing a user does.

Heavy imports wait until a subcommand needs them, so that help answers at once.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from training.cli import parse

OVERVIEW = """leaplm: language models that leap

usage: leaplm COMMAND …        (leaplm COMMAND --help explains one)

  demo     the main job on embedded data, no network: train, probe, report
           leaplm demo --fast --out runs/demo
  train    train a preset; the same command again resumes it
           leaplm train poker --head.name block-chain --run-dir runs/poker
           accelerate launch -m leaplm train poker …
           leaplm train stdlib-trunk --plan      (the memory it will hold; --profile: where a step's time goes)
  probe    joint validity of what a trained model emits at once
           leaplm probe runs/poker --suite poker --json poker.json
  perplexity  likelihood of held-out text, exact or a bound: trunk, and joint head position by position; flow language models
           leaplm perplexity runs/independent runs/block-chain --json nll.json
  accept   how many drafted tokens the trunk lets stand, by rule and temperature
           leaplm accept runs/block-chain --verify token block
  speed    tokens per second of trunk, transformers and joint heads on the same weights
           leaplm speed runs/block-chain --batch-sizes 1,8,32
  lm-eval  the lm-evaluation-harness on a run, or on any causal LM
           leaplm lm-eval run --model leaplm-mtp --model_args pretrained=runs/block-chain --tasks hellaswag
  sample   text that a run writes, shown block by block or kept in a file
           leaplm sample runs/block-chain --temperatures 0 0.7 1 --num 64 --out samples.jsonl
  regenerate  text that a run's trunk writes, for heads to train on
           leaplm regenerate runs/stdlib-trunk --out written.jsonl
  quality  the worth of such a file without a verifier: a judge's NLL, entropy, repetition
           leaplm quality samples.jsonl --judge runs/stdlib-judge
  report   one page of everything measured of any runs
           leaplm report runs/independent runs/block-chain samples.jsonl --out report.html
  export   a run as a model that transformers reads alone
           leaplm export runs/sequential --format use-mtp --out model
  data     the text sets known by name: list, or get one
           leaplm data list
  completion  for your shell: eval "$(leaplm completion bash)"

Every user error is one line and exit code 2; LEAPLM_DEBUG=1 shows its traceback.
"""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    try:
        if argv[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(argv[0], COMMANDS, 1)
            raise ValueError(
                f"unknown command {argv[0]!r}: {'did you mean ' + near[0] + '?' if near else 'choose from ' + ', '.join(COMMANDS)}"
            )
        code = COMMANDS[argv[0]](argv[1:])
    except BrokenPipeError:  # `leaplm … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be flushed there
        return 0
    except (ValueError, NotImplementedError, OSError) as error:
        if os.environ.get("LEAPLM_DEBUG"):
            raise
        print(f"leaplm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leaplm: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return code or 0


def train(argv: list[str]) -> None:
    """Train PRESET (a name from configs/, or a YAML file). Run the same command again to resume."""
    import tyro

    from training.config import RunConfig, load_preset, preset_names

    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: leaplm train PRESET [--run-dir DIR] [--field.sub value …]\n\npresets: " + ", ".join(preset_names())
        )
        print("leaplm train PRESET --help lists every field with its value in that preset")
        return
    if argv[0].startswith("-"):
        raise ValueError(f"train takes the preset first, not {argv[0]}: leaplm train PRESET {argv[0]} …")
    preset = load_preset(argv[0])

    @dataclass
    class Train:
        """Train a preset. Run the same command again to resume."""

        run_dir: Path = Path("runs") / Path(argv[0]).stem
        """the run's folder"""
        quiet: bool = False
        """no progress bar"""
        plan: bool = False
        """train nothing: say what the training will hold in memory, and whether it fits"""
        profile: bool = False
        """trace five steps: where their time goes, in the run's folder under profile/"""
        json: Path | None = None
        """write the last validation here"""
        config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: preset)

    args = parse(Train, argv[1:], f"leaplm train {argv[0]}")
    if args.plan:
        from training.memory_plan import print_plan

        print_plan(args.config)
        return
    from training.loop import train as run
    from training.tasks import build

    metrics = run(args.config, args.run_dir, build, args.quiet, args.profile)
    if args.profile:
        print(f"{args.run_dir / 'profile'}: operations.txt, trace.json")
    if int(os.environ.get("RANK", 0)) == 0:
        if args.json:
            from eval.records import write_records

            told = {"run": str(args.run_dir), "validation": metrics}
            write_records(args.json, ["leaplm", "train", *argv], [], **told)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{args.run_dir}: {shown or 'finished'}")


def data(argv: list[str]) -> None:
    """What text is known, where it comes from, whether it is here."""
    import tyro

    @dataclass
    class Data:
        """list: the sets that data.name knows, where each comes from, whether it is here.
        get NAME: fetch one from where it is published, once."""

        action: tyro.conf.Positional[Literal["list", "get"]]
        name: tyro.conf.Positional[str | None] = None
        """of the set to get"""
        root: str | None = None
        """the folder of public sets, default the variable LEAPLM_DATA"""
        json: Path | None = None
        """write the list here"""

    args = parse(Data, argv, "leaplm data")
    from training.data.command import run

    run(args, ["leaplm", "data", *argv])


def completion(argv: list[str]) -> None:
    """A shell's completion script."""
    shells = ("bash", "zsh", "fish")
    if len(argv) != 1 or argv[0] not in shells:
        raise ValueError(f"completion takes the shell's name: {', '.join(shells)}")
    from training.completion import script

    print(script(argv[0], COMMANDS), end="")


def demo(argv: list[str]) -> None:
    """The main job on embedded data."""

    @dataclass
    class Demo:
        """Train a small trunk on the standard library's source and heads on it, and heads on two
        suites; probe them and write summary.json and report.html."""

        fast: bool = False
        """about a minute instead of several"""
        out: Path = Path("runs/demo")
        """where everything goes"""

    args = parse(Demo, argv, "leaplm demo", files=())
    from eval.demo import run

    run(args.out, args.fast, ["leaplm", "demo", *argv])


def command_of(module: str, name: str) -> Callable[[list[str]], int | None]:
    """A command of a module of eval, which is loaded when it is asked for."""
    return lambda argv: getattr(import_module(f"eval.{module}"), name)(argv)


def commands_of(module: str, *names: str) -> dict[str, Callable[[list[str]], int | None]]:
    return {name: command_of(module, name) for name in names}


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": demo,
    "train": train,
    **commands_of("measuring_commands", "probe", "perplexity", "accept", "speed", "quality"),
    "lm-eval": command_of("harness.command", "run"),
    **commands_of("writing_commands", "sample", "regenerate", "report", "export"),
    "data": data,
    "completion": completion,
}


if __name__ == "__main__":
    sys.exit(main())
