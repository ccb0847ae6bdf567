"""leaplm's command line: one subcommand for each thing a user does.

Heavy imports wait until a subcommand needs them, so that help answers at once.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from training.cli import numbers, parse

OVERVIEW = """leaplm: language models that leap

usage: leaplm COMMAND …        (leaplm COMMAND --help explains one)

  demo     the main job on embedded data, no network: train, probe, report
           leaplm demo --fast --out runs/demo
  train    train a preset; the same command again resumes it
           leaplm train poker --head.name block-chain --run-dir runs/poker
           accelerate launch -m leaplm train poker …
  probe    joint validity of what a trained model emits at once
           leaplm probe runs/poker --suite poker --json poker.json
  perplexity  exact likelihood of held-out text: trunk, and joint head position by position
           leaplm perplexity runs/independent runs/block-chain --json nll.json
  speed    tokens per second of trunk, transformers and joint heads on the same weights
           leaplm speed runs/block-chain --batch-sizes 1,8,32
  sample   text that a run writes, shown block by block or kept in a file
           leaplm sample runs/block-chain --temperatures 0 0.7 1 --num 64 --out samples.jsonl
  quality  the worth of such a file without a verifier: a judge's NLL, entropy, repetition
           leaplm quality samples.jsonl --judge runs/stdlib-judge
  report   one page of everything measured of any runs
           leaplm report runs/independent runs/block-chain samples.jsonl --out report.html
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
        COMMANDS[argv[0]](argv[1:])
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
    return 0


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
        config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: preset)

    args = parse(Train, argv[1:], f"leaplm train {argv[0]}")
    from training.loop import train as run
    from training.tasks import build

    metrics = run(args.config, args.run_dir, build, args.quiet)
    if int(os.environ.get("RANK", 0)) == 0:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{args.run_dir}: {shown or 'finished'}")


def probe(argv: list[str]) -> None:
    """Joint validity of what runs emit at once."""
    import tyro

    @dataclass
    class Probe:
        """Draw from each run by direct decoding and compare with the suite's exact law."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints or model folders"""
        suite: str
        """poker, poker-frequency, pairs-64, skip-64, dates, brackets-8, sums-2, sudoku4, or a cases.jsonl file"""
        json: Path | None = None
        """write the records here"""
        report: Path | None = None
        """write a page with heat maps here"""
        picture: Path | None = None
        """write the heat map alone here, as SVG"""
        num: int = 20_000
        """samples in all, shared evenly among the prompts"""
        batch: int = 1024
        """samples decoded at once"""
        block: int | None = None
        """tokens per trunk pass, default the head's own K"""
        temperature: float = 1.0
        top_p: float = 1.0
        seed: int = 0
        """of the draws"""

    args = parse(Probe, argv, "leaplm probe")
    if not args.runs:
        raise ValueError("probe needs at least one run: leaplm probe RUN --suite NAME")
    from eval.validity.command import run

    run(args, ["leaplm", "probe", *argv])


def perplexity(argv: list[str]) -> None:
    """Likelihood of held-out text."""
    import tyro

    @dataclass
    class Perplexity:
        """Exact likelihood of held-out text: the trunk's own chain; the joint head's block, position by position
        and in mean, beside the trunk on the same targets; the text cut into consecutive blocks and scored by
        the head alone (direct). With an independent head among the runs, the share of its gap to the trunk
        that each other head closes."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints or model folders"""
        data: str | None = None
        """stdlib, a local text or JSONL file or folder, or a Hub set; default what the run was trained on"""
        text_column: str = "text"
        """with --data: the column that holds the text"""
        split: Literal["validation", "test"] = "validation"
        """the held-out part"""
        length: int | None = None
        """tokens of context at most, default the run's own"""
        blocks: tuple[int, ...] | None = None
        """block sizes to score, default those of 2, 4, 8, 16 that the head reaches"""
        json: Path | None = None
        """write the records here"""

    args = parse(Perplexity, argv, "leaplm perplexity")
    if not args.runs:
        raise ValueError("perplexity needs at least one run: leaplm perplexity RUN")
    if args.length is not None and args.length < 2:
        raise ValueError(f"--length {args.length} must be 2 at least")
    from eval.perplexity import run

    run(args, ["leaplm", "perplexity", *argv])


def speed(argv: list[str]) -> None:
    """Decoding and training speed."""
    import tyro

    from mtp.heads import NAMES

    @dataclass
    class Speed:
        """Decoding speed of the trunk in our loop, of transformers' own loop, of prompt lookup and of joint heads,
        on the same weights and interleaved: medians of per-round ratios with their bootstrap 95% interval. Keep
        the machine idle; an interval wider than ±10% says so."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RUN …]")] = ()
        """run directories, checkpoints or model folders, each against its own trunk"""
        reference: tuple[Literal["S", "M", "L"], ...] = ()
        """reference trunks with random weights: S 4×256, M 12×768, L the shape of Qwen3-0.6B"""
        heads: tuple[str, ...] = NAMES
        """of the reference trunks"""
        blocks: tuple[int, ...] = (4, 8)
        """tokens per trunk pass"""
        rank: int = 128
        """ρ of the chains on reference trunks"""
        batch_sizes: Annotated[tuple[int, ...], numbers()] = (1, 8, 32)
        """sequences decoded at once"""
        prompt: int = 128
        """tokens of the prompt"""
        new: int = 64
        """tokens written beyond the first block"""
        temperature: float = 1.0
        rounds: int = 15
        """interleaved rounds, after one of warm-up"""
        dtype: Literal["auto", "float32", "bfloat16"] = "auto"
        """auto: bfloat16 on GPUs and on CPUs with AMX or AVX512-BF16"""
        threads: int | None = None
        """CPU threads, default torch's"""
        compile: bool = False
        """also with the trunk's pass compiled"""
        train: bool = False
        """the training step instead: trunk alone, trunk and head at every position and at a quarter of them"""
        json: Path | None = None
        """write the records here"""

    args = parse(Speed, argv, "leaplm speed")
    if not args.runs and not args.reference:
        raise ValueError("speed needs a run or a reference trunk: leaplm speed RUN, or leaplm speed --reference M")
    for name in ("blocks", "batch_sizes"):
        if not getattr(args, name) or min(getattr(args, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be numbers of 1 or above")
    if min(args.prompt, args.new, args.rounds, args.rank, args.threads or 1) < 1:
        raise ValueError("--prompt, --new, --rounds, --rank and --threads must be 1 or above")
    if any(args.new % block for block in args.blocks):
        raise ValueError(f"--new {args.new} must be a multiple of every block of --blocks")
    from eval.speed.command import run

    run(args, ["leaplm", "speed", *argv])


def sample(argv: list[str]) -> None:
    """Text that runs write, images that they draw."""
    import tyro

    @dataclass
    class Sample:
        """Write text with each run by direct decoding and show it, block by block, or keep it in a file that
        `leaplm quality` scores and `leaplm report` shows. An image run draws a grid for every number of steps."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints or model folders"""
        prompt: str | None = None
        """what to go on from, default pieces of the text held out in training, or the suite's prompts"""
        num: int = 4
        """samples for each temperature"""
        new: int = 64
        """tokens to write"""
        prompt_tokens: int = 32
        """tokens of the held-out text that make a prompt"""
        temperatures: tuple[float, ...] = (1.0,)
        """0 is greedy"""
        top_p: float = 1.0
        block: int | None = None
        """tokens per trunk pass, default the head's own K; 1 is the trunk alone"""
        batch: int = 64
        """samples decoded at once"""
        seed: int = 0
        """of the draws: one prompt, seed and temperature always give the same text"""
        steps: Annotated[tuple[int, ...], numbers()] = (1, 2, 4, 8)
        """images: jumps from noise to image"""
        sampler: Literal["pushforward", "ddim", "euler", "heun", "restart", "ddpm"] = "pushforward"
        """images: pushforward tells the network where each jump lands; euler, heun, ddim and ddpm do not"""
        guidance: float = 1.0
        """images: classifier-free guidance; 1 is none"""
        label: int | None = None
        """images: one class, default all in turn"""
        score: bool = False
        """images: FID and the like against the test split, beside the floor"""
        inception: Path | None = None
        """images: with --score, the FID on the features of this file too (Inception v3 as TorchScript)"""
        out: Path | None = None
        """keep the samples here, as JSONL; images as PNG, default RUN/samples/steps-N.png"""
        json: Path | None = None
        """write them as JSON, with command and provenance; of images the scores"""

    args = parse(Sample, argv, "leaplm sample")
    if not args.runs:
        raise ValueError("sample needs at least one run: leaplm sample RUN")
    if min(args.num, args.new, args.prompt_tokens, args.batch) < 1 or not args.temperatures:
        raise ValueError("--num, --new, --prompt-tokens and --batch must be 1 or above, --temperatures not empty")
    if not args.steps or min(args.steps) < 1:
        raise ValueError("--steps must be numbers of 1 or above")
    from eval.sample_command import sample as run

    run(args, ["leaplm", "sample", *argv])


def quality(argv: list[str]) -> None:
    """What samples are worth without a verifier."""
    import tyro

    @dataclass
    class Quality:
        """Score files of samples: NLL under a judge (a larger model trained on the same text), unigram entropy,
        distinct n-grams and repetition, beside the real text that followed the same prompts."""

        samples: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE [FILE …]")]
        """written by leaplm sample --out"""
        judge: str | None = None
        """a run to judge by, such as the preset stdlib-judge; none: no judge NLL, and words instead of tokens"""
        json: Path | None = None
        """write the records here"""

    args = parse(Quality, argv, "leaplm quality")
    if not args.samples:
        raise ValueError("quality needs at least one file: leaplm quality samples.jsonl --judge RUN")
    from eval.sample_command import score

    score(args, ["leaplm", "quality", *argv])


def report(argv: list[str]) -> None:
    """One page of everything measured."""
    import tyro

    @dataclass
    class Report:
        """Join any runs on one page: speed against quality, likelihood against block size, validity, training
        curves, samples, and every record in a table that sorts. One file, no network."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories (with what probe, perplexity and speed kept there), JSON files of records, JSONL files of samples"""
        out: Path = Path("report.html")
        title: str = "leaplm: measured"

    args = parse(Report, argv, "leaplm report")
    if not args.runs:
        raise ValueError("report needs at least one run: leaplm report RUN")
    from eval.joined import run

    run(args, ["leaplm", "report", *argv])


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

    args = parse(Demo, argv, "leaplm demo")
    from eval.demo import run

    run(args.out, args.fast, ["leaplm", "demo", *argv])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo, "train": train, "sample": sample, "probe": probe, "perplexity": perplexity, "speed": speed,
    "quality": quality, "report": report, "data": data, "completion": completion,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
