"""The options of the commands that measure a trained run, and the call behind each.

Nothing heavy is imported before a command's options are read.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from training.cli import Refining, numbers, parse

BLOCKS = (4, 8)
"""Tokens a pass that `speed` times where nothing else is asked for."""
HEADS = ("independent", "first-order-chain", "recurrent-chain", "block-chain")
"""On reference trunks, where nothing else is asked for."""


def probe(argv: list[str]) -> None:
    """Joint validity of what runs emit at once."""
    import tyro

    @dataclass
    class Probe:
        """Draw from each run, or from any causal LM, and compare with the suite's exact law."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints, model folders, or any causal LM's name"""
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
        """tokens per trunk pass, default the head's own K. Flow language models of
        blocks: tokens of a block, default the longest that was trained"""
        decoder: tuple[Literal["joint", "independent", "verified", "softmax", "contextual", "nearest"], ...] = (
            "joint",
        )
        """joint: the model's own law, a head's by direct decoding, else token by token. independent: each token drawn apart
        from its own marginal, as the best factorised decoder would. verified: drafts that the trunk judges. Flow
        language models: softmax, each token from its own, contextual, by the decoder that was trained along, default where
        there is one, nearest, the code next to its state. One row each"""
        verify: Literal["token", "block", "gumbel", "inverse-cdf", "jacobi"] | None = None
        """with --decoder verified: the rule, default token, or jacobi without a head"""
        ending: Literal["token", "any"] = "token"
        """an answer ends with the end token; any: what follows it is not looked at, for models never taught to end"""
        temperature: float = 1.0
        top_p: float = 1.0
        seed: int = 0
        """of the draws"""
        steps: Annotated[tuple[int, ...], numbers()] = (1, 2, 4)
        """flow language models: refinement steps, the draw of the tokens being the last"""
        refining: tyro.conf.OmitArgPrefixes[Refining] = field(default_factory=Refining)

    args = parse(Probe, argv, "leaplm probe")
    if not args.runs:
        raise ValueError("probe needs at least one run: leaplm probe RUN --suite NAME")
    if not args.decoder:
        raise ValueError("--decoder takes joint, independent or verified, or several of them")
    from eval.validity.command import run

    run(args, ["leaplm", "probe", *argv])


def perplexity(argv: list[str]) -> int:
    """Likelihood of held-out text."""
    import tyro

    @dataclass
    class Perplexity:
        """Exact likelihood of held-out text: the trunk's own chain; the joint head's block, position by position
        and in mean, beside the trunk on the same targets; the text cut into consecutive blocks and scored by
        the head alone (direct). With an independent head among the runs, the share of its gap to the trunk
        that each other head closes.
        Of flow language models: a bound or an estimate, with its Monte Carlo error, its network calls and what it is;
        clocks and grids are fitted on training text."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints or model folders"""
        data: str | None = None
        """stdlib, a local text or JSONL file or folder, or a Hub set; default what the run was trained on. Flow language
        models: a suite too"""
        text_column: str = "text"
        """with --data: the column that holds the text"""
        split: Literal["validation", "test"] = "validation"
        """the held-out part"""
        length: int | None = None
        """tokens of context at most, default the run's own"""
        blocks: Annotated[tuple[int, ...] | None, tyro.conf.arg(aliases=["--block"])] = None
        """block sizes to score, default those of 2, 4, 8, 16 that the head reaches; of models that write windows in blocks,
        each behind clean text, lengths that were trained, default the longest"""
        estimator: Literal["vlb", "k-step", "ode", "sampler", "nelbo", "exact"] | None = None
        """flow language models: vlb (default), the bound in continuous time; k-step, of so many ancestral steps; ode, by the
        flow, an estimate; sampler, what the few-step sampler itself spends. Masked diffusion has nelbo, the autoregressive
        baseline exact"""
        steps: Annotated[tuple[int, ...], numbers()] | None = None
        """flow language models: of k-step, ode and sampler; default 1,2,4,8, of k-step those that a run was trained for"""
        from_zero: bool = False
        """flow language models: the k-step bound of a network that is shown zeros in the place of pure noise; with --steps 0
        nothing is drawn, and the score is exact"""
        sampler: Literal["pushforward", "ddim", "euler", "heun", "restart", "ddpm"] = "pushforward"
        """flow language models: that --estimator sampler scores"""
        calls: int = 16
        """flow language models: network calls a sequence of vlb, k-step and nelbo"""
        draws: int = 4096
        """flow language models: of the sampler's noise, where a suite's answers are listed"""
        windows: int = 1024
        """flow language models: sequences scored at most"""
        fit: int = 256
        """flow language models: sequences of training text that clocks, grids and inflations are fitted on"""
        seed: int = 0
        """flow language models: of the draws"""
        certify: bool = False
        """flow language models: score one position at every token of the vocabulary instead; exit code 1 if Σ exp(−score)
        is above 1 by more than three errors"""
        json: Path | None = None
        """write the records here"""

    args = parse(Perplexity, argv, "leaplm perplexity")
    if not args.runs:
        raise ValueError("perplexity needs at least one run: leaplm perplexity RUN")
    if args.length is not None and args.length < 2:
        raise ValueError(f"--length {args.length} must be 2 at least")
    steps = (1,) if args.steps is None else args.steps
    if min(args.windows, args.fit, args.calls, args.draws) < 1 or not steps or min(steps) < 0:
        raise ValueError("--windows, --fit, --calls and --draws must be 1 or above, --steps 0 or above")
    from eval.perplexity import run

    return run(args, ["leaplm", "perplexity", *argv])


def speed(argv: list[str]) -> None:
    """Decoding and training speed."""
    import tyro

    @dataclass
    class Speed:
        """Decoding speed of the trunk in our loop, of transformers' own loop, of prompt lookup and of joint heads,
        on the same weights and interleaved: medians of per-round ratios with their bootstrap 95% interval. Keep
        the machine idle; an interval wider than ±10% says so."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RUN …]")] = ()
        """run directories, checkpoints or model folders, each against its own trunk"""
        reference: tuple[Literal["S", "M", "L"], ...] = ()
        """reference trunks with random weights: S 4×256, M 12×768, L the shape of Qwen3-0.6B"""
        heads: tuple[str, ...] = HEADS
        """of the reference trunks"""
        blocks: tuple[int, ...] | None = None
        """tokens per trunk pass, default 4 and 8, of a run those that it was trained for"""
        rank: int = 128
        """ρ of the chains on reference trunks"""
        options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KEY=VALUE …]")] = ()
        """of the heads on reference trunks that have them: width=256 num_layers=1"""
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
        verify: tuple[Literal["token", "block", "gumbel", "inverse-cdf"], ...] = ()
        """also decode with the trunk judging each head's draft, by these rules"""
        acceptance: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[FILE …]")] = ()
        """with --verify: JSON of leaplm accept, whose accepted tokens are replayed where the weights are random"""
        train: bool = False
        """the training step instead: trunk alone, trunk and head at every position and at a quarter of them"""
        json: Path | None = None
        """write the records here"""

    args = parse(Speed, argv, "leaplm speed")
    if not args.runs and not args.reference:
        raise ValueError("speed needs a run or a reference trunk: leaplm speed RUN, or leaplm speed --reference M")
    for name in ("blocks", "batch_sizes"):
        if getattr(args, name) is not None and min(getattr(args, name), default=0) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be numbers of 1 or above")
    if min(args.prompt, args.new, args.rounds, args.rank, args.threads or 1) < 1:
        raise ValueError("--prompt, --new, --rounds, --rank and --threads must be 1 or above")
    if args.verify and args.reference and not args.acceptance:
        raise ValueError(
            "random weights draft nothing: with --reference --verify give --acceptance FILE of leaplm accept"
        )
    if any(args.new % block for block in args.blocks or BLOCKS):
        raise ValueError(f"--new {args.new} must be a multiple of every block of --blocks")
    from eval.speed.command import run

    run(args, ["leaplm", "speed", *argv])


def accept(argv: list[str]) -> None:
    """How many tokens of a draft the trunk lets stand."""
    import tyro

    @dataclass
    class Accept:
        """Verified decoding on held-out prompts, or a suite's own: tokens that a pass of the trunk commits, and the
        share of drafts that stand position by position, for each rule and temperature. With --calibrate, an estimate
        of a token's chance to stand from the head's own law: how well calibrated it is, and kept with the run."""

        runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
        """run directories, checkpoints or model folders"""
        verify: tuple[Literal["token", "block", "gumbel", "inverse-cdf", "jacobi"], ...] = ("token", "block")
        """rules: token and block leave the law as it is, gumbel, inverse-cdf and jacobi the very text that the trunk
        writes with the same noise"""
        temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
        top_p: float = 1.0
        blocks: tuple[int, ...] | None = None
        """tokens a pass judges, default the head's own K"""
        calibrate: bool = False
        """fit the estimate at training prompts, for each temperature, and score it on held-out ones (of a suite that holds
        none out, on other draws)"""
        threshold: tuple[float, ...] = ()
        """also end each draft where its estimated chance to stand falls below these; lossless all the same"""
        num: int = 128
        """prompts"""
        prompt_tokens: int = 32
        """tokens of the held-out text that make a prompt"""
        new: int = 64
        """tokens to write"""
        batch: int = 64
        """prompts decoded at once"""
        seed: int = 0
        """of the draws"""
        json: Path | None = None
        """write the records here"""

    args = parse(Accept, argv, "leaplm accept")
    if not args.runs:
        raise ValueError("accept needs at least one run: leaplm accept RUN")
    if min(args.num, args.new, args.prompt_tokens, args.batch) < 1 or not args.temperatures or not args.verify:
        raise ValueError(
            "--num, --new, --prompt-tokens, --batch must be 1 or above, --temperatures, --verify not empty"
        )
    if not all(0 < t <= 1 for t in args.threshold):
        raise ValueError("--threshold takes chances above 0, up to 1")
    if "jacobi" in args.verify and (args.calibrate or args.threshold):
        raise ValueError("--calibrate and --threshold are about a head's draft: leave --verify jacobi out")
    from eval.acceptance import run

    run(args, ["leaplm", "accept", *argv])


def quality(argv: list[str]) -> None:
    """What samples are worth without a verifier."""
    import tyro

    @dataclass
    class Quality:
        """Score files of samples: NLL under a judge (a larger model trained on the same text), unigram entropy,
        distinct n-grams, repetition, the distance of their n-grams from the real text's and, of several samples a
        prompt, BrierLM; beside the same of the real text that followed the prompts."""

        samples: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE [FILE …]")]
        """written by leaplm sample --out"""
        judge: str | None = None
        """a run to judge by, such as the preset stdlib-judge; none: no judge NLL, and words instead of tokens"""
        mauve: bool = False
        """MAUVE too, on the judge's states (the extra mauve)"""
        json: Path | None = None
        """write the records here"""

    args = parse(Quality, argv, "leaplm quality")
    if not args.samples:
        raise ValueError("quality needs at least one file: leaplm quality samples.jsonl --judge RUN")
    from eval.sample_command import score

    score(args, ["leaplm", "quality", *argv])
