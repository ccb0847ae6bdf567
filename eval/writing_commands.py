"""The options of the commands that make something of a trained run, and the call behind each.

Nothing heavy is imported before a command's options are read.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from training.cli import Refining, numbers, parse


def sample(argv: list[str]) -> None:
    """Text that runs write, images that they draw."""
    import tyro

    @dataclass
    class Sample:
        """Write text with each run by direct decoding and show it, block by block, or keep it in a file that
        `leaplm quality` scores and `leaplm report` shows. An image run draws a grid for every number of steps, a flow
        language model writes a text for each and shows its drafts."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints or model folders"""
        prompt: str | None = None
        """what to go on from, default pieces of the text held out in training, or the suite's prompts"""
        num: int = 4
        """prompts for each temperature; images for each number of steps"""
        repeats: int = 1
        """samples of each prompt; leaplm quality needs two for BrierLM"""
        new: int = 64
        """tokens to write"""
        prompt_tokens: int = 32
        """tokens of the held-out text that make a prompt"""
        temperatures: tuple[float, ...] = (1.0,)
        """0 is greedy"""
        top_p: float = 1.0
        block: int | None = None
        """tokens per trunk pass, default the head's own K; 1 is the trunk alone. Flow language models of
        blocks: tokens of a block, default the longest that was trained"""
        confidence: float | None = None
        """keep of each block what is above this chance to stand, by the estimate of leaplm accept --calibrate, and draw
        the rest after the next pass"""
        drawn: bool = False
        """with --confidence: let each drawn token have its say, which favours likely ones; else each place is decided
        before its token is drawn"""
        batch: int = 64
        """samples decoded at once"""
        seed: int = 0
        """of the draws: one prompt, seed and temperature always give the same text"""
        steps: Annotated[tuple[int, ...], numbers()] = (1, 2, 4, 8)
        """images and flow language models: jumps from noise to image or text"""
        decoder: Literal["softmax", "contextual", "nearest"] | None = None
        """flow language models: each token from its own softmax, by the decoder that was trained along, default where there
        is one, or the nearest code of its state"""
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
        refining: tyro.conf.OmitArgPrefixes[Refining] = field(default_factory=Refining)

    args = parse(Sample, argv, "leaplm sample")
    if not args.runs:
        raise ValueError("sample needs at least one run: leaplm sample RUN")
    if min(args.num, args.repeats, args.new, args.prompt_tokens, args.batch) < 1 or not args.temperatures:
        raise ValueError(
            "--num, --repeats, --new, --prompt-tokens and --batch must be 1 or above, --temperatures not empty"
        )
    if args.confidence is not None and not 0 < args.confidence <= 1:
        raise ValueError(f"--confidence {args.confidence:g} must be a chance above 0, up to 1")
    if args.drawn and args.confidence is None:
        raise ValueError("--drawn is a way of --confidence: give a threshold there")
    if not args.steps or min(args.steps) < 1:
        raise ValueError("--steps must be numbers of 1 or above")
    from eval.sample_command import sample as run

    run(args, ["leaplm", "sample", *argv])


def regenerate(argv: list[str]) -> None:
    """Text that a trunk writes, for heads to train on."""
    import tyro

    @dataclass
    class Regenerate:
        """Let the trunk of a run go on from pieces of its own training text, and keep what it writes as one row
        {"text": …} a document, for `leaplm train … --trunk.pretrained RUN --data.name FILE`. The same command again
        goes on with an unfinished file."""

        run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
        """run directory or checkpoint, trained on text"""
        out: Path
        """the JSONL file"""
        num: int = 4096
        """documents"""
        prompt_tokens: int = 32
        """tokens of the training text that begin a document; shorter documents give all they have"""
        new: int = 128
        """tokens that the trunk writes, unless it ends the text before"""
        temperature: float = 1.0
        top_p: float = 1.0
        batch: int = 64
        """documents written at once"""
        seed: int = 0
        """of the draws"""
        json: Path | None = None
        """write here what was written: the file, its documents and tokens"""

    args = parse(Regenerate, argv, "leaplm regenerate")
    if min(args.num, args.prompt_tokens, args.new, args.batch) < 1:
        raise ValueError("--num, --prompt-tokens, --new and --batch must be 1 or above")
    from eval.regenerate import run

    run(args, ["leaplm", "regenerate", *argv])


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
        json: Path | None = None
        """write every record that is joined here too"""

    args = parse(Report, argv, "leaplm report")
    if not args.runs:
        raise ValueError("report needs at least one run: leaplm report RUN")
    from eval.joined import run

    run(args, ["leaplm", "report", *argv])


def export(argv: list[str]) -> None:
    """A run as a folder of its own."""
    import tyro

    @dataclass
    class Export:
        """Write a run as a model that transformers reads, tokenizer and a card with its numbers included.

        hf: the trunk alone, which needs this package no more; of a flow language model or an image run the whole model, which is
        loaded by this package. use-mtp: a trunk of the Llama form with a sequential head, for
        AutoModelForCausalLM.from_pretrained(DIR).generate(…, use_mtp=True). speculators: a chain head alone, in the open
        layout of the speculators package under a model type of our own: its config is read there, the model by
        mtp.speculators.read_speculator."""

        run: tyro.conf.Positional[str]
        """a run directory, a checkpoint or a model folder"""
        format: Literal["hf", "use-mtp", "speculators"] = "hf"
        out: Path | None = None
        """the folder to write, default RUN/export-FORMAT"""
        verifier: str | None = None
        """of speculators: the trunk by name or path, default what the run was attached to"""
        json: Path | None = None
        """write here what was written: the folder and its files"""

    args = parse(Export, argv, "leaplm export", files=("json",))
    from eval.export_command import run

    run(args, ["leaplm", "export", *argv])
