"""The fields of a run's configuration, section by section, with their types, defaults and help."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from training.field_types import PAIRS, STRICT, Count, Decay, Rate, Share, Size
from training.map_fields import FlowConfig, ImageConfig


@dataclass(config=STRICT)
class DataConfig:
    """What is trained on: a suite, a cases file, or text."""

    name: str = "stdlib"
    """'stdlib' (the running Python's standard library), a set of `leaplm data list`, a local .txt/.jsonl file
    or folder, or a Hub set"""
    root: str | None = None
    """the folder of public sets as plain files, default the variable LEAPLM_DATA"""
    subset: str | None = None
    """the Hub set's configuration"""
    split: str = "train"
    """the Hub set's training split"""
    validation: str | None = None
    """a local file, or the Hub set's split, to validate on; default: part of the documents is held out"""
    text_column: str = "text"
    """the column that holds the text"""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """what one document is in a plain text file"""
    streaming: bool = False
    """read the Hub set or the files as a stream instead of converting them first"""
    max_documents: Count | None = None
    """stop reading after so many documents"""
    length: Count = 256
    """tokens the trunk reads at once"""
    suite: str | None = None
    """a validity suite to train on instead of text: poker, pairs-64, skip-64, dates, sums-2, …"""
    cases: str | None = None
    """a cases.jsonl file to train on instead of text: rows {"prompt", "texts", "p" (optional)}"""


@dataclass(config=STRICT)
class TokenizerConfig:
    """How text becomes tokens."""

    kind: Literal["bpe", "characters", "words", "pretrained"] = "bpe"
    """bpe: byte-level, trained on the corpus; characters: a–z and space, all else folded into it; words: one token per
    word; pretrained: by name or path"""
    vocab_size: Count = 2048
    """of a BPE trained here"""
    name: str | None = None
    """the pretrained tokenizer, default the trunk's own"""


@dataclass(config=STRICT)
class TrunkConfig:
    """The causal language model the head sits on."""

    pretrained: str | None = None
    """a causal LM by name or path, or a leaplm run directory; default: from scratch"""
    architecture: str = "llama"
    """from scratch: any causal LM of transformers by its model_type (llama, qwen3, gpt2, …)"""
    config: Annotated[dict[str, int | float | bool | str], PAIRS] = field(default_factory=dict)
    """from scratch: fields of that architecture's config"""
    frozen: bool = False
    """train the head alone"""
    lora: Count | None = None
    """rank of low-rank adapters (extra peft) trained in a pretrained trunk's place, and merged into what is saved"""
    cache_states: bool = False
    """frozen: compute the trunk's states once and keep them on disk"""


@dataclass(config=STRICT)
class HeadConfig:
    """The joint head."""

    name: str | None = None
    """independent, blockwise, medusa; first-order-chain, recurrent-chain, gru-chain, block-chain, text-chain,
    text-recurrent-chain, lattice-chain; mixture, mixture-of-chains, hidden-markov, tree; sequential; noise; flow-map; or your own as
    module:Class; none: the trunk alone"""
    block_size: Count = 4
    """K, tokens per trunk pass, from 2 to 16"""
    rank: Count | None = None
    """ρ of a chain's or noise head's low-rank logits, default 256; the others have none"""
    options: Annotated[dict[str, int | float], PAIRS] = field(default_factory=dict)
    """more of the family's own options: projection_width, width, num_layers, …"""
    weight: Rate = 1.0
    """of the head's loss beside the trunk's"""
    anchor_fraction: Share = 1.0
    """score the head on this fraction of the positions"""
    weighting: str | None = None
    """of the block's positions: decay, d-pace; none: all alike"""
    distill: str | None = None
    """teach the head the trunk's full law of each position instead of its token: cross-entropy, total-variation, hybrid"""
    curriculum: Share | None = None
    """chains: share of the steps over which the correction is switched on, from the independent law alone"""
    balance: Rate | None = None
    """mixtures: coefficient of the loss that keeps all components in use, such as 0.01"""
    own_samples: Share | None = None
    """share of the anchors taught, by head.distill or hybrid, at prefixes the head draws itself, which the trunk reads:
    K − 1 more tokens an anchor, without gradient"""
    on_policy: str | None = None
    """train the head on blocks that it draws, the frozen trunk judging them: reinforce- or rloo- with accepted, overlap,
    score or kl; or beside the text's blocks: energy with rloo-, straight-through-, st-gumbel-, gumbel-rao-, reinmax-.
    anchor_fraction 0.0078125 is 2 anchors in a window of 256"""
    samples: Count | None = None
    """on_policy: blocks drawn at each anchor, default 4"""
    start: str | None = None
    """begin with the head of this run, of the same family and sizes, instead of a fresh one"""
    starts_only: bool = False
    """suites and cases: train the head only where decoding hangs its blocks, at the prompt's end and every K
    tokens after it; K times less work, and the run can then be probed with blocks of K alone"""


@dataclass(config=STRICT)
class OptimizerConfig:
    """AdamW or Muon, and their learning rate as a function of the step alone."""

    lr: Size = 1e-3
    """the highest learning rate"""
    min_lr_ratio: Rate = 0.0
    """last learning rate over the highest"""
    warmup: Annotated[int, Field(ge=0)] = 50
    """steps of linear warm-up"""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """after the warm-up"""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: Rate = 0.1
    """on matrices only"""
    muon: bool = False
    """the weights of linear layers by Muon, of the size of AdamW's steps; all else by AdamW"""
    clip: Size = 1.0
    """largest gradient norm"""


@dataclass(config=STRICT)
class TrainingConfig:
    """How long, how large, how often."""

    steps: Count = 1000
    """optimizer steps"""
    batch_size: Count = 16
    """samples in a global batch, over all processes and accumulation steps"""
    accumulation: Count = 1
    """micro-batches per process; changes memory, not the result"""
    ema: Decay | None = 0.999
    """decay of the averaged weights that are evaluated and saved; none: the weights themselves"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on GPUs and on CPUs with AMX or AVX512-BF16, float32 elsewhere"""
    threads: Count | None = None
    """CPU threads; default: the faster of one and all, timed at the start and kept on resume"""
    tracker: Literal["tensorboard", "wandb"] | None = None
    """tell an experiment tracker what metrics.jsonl is told: tensorboard (extra trackers), into the run's folder trackers, or wandb,
    if it is installed"""
    log_every: Count = 10
    evaluate_every: Count = 500
    evaluate_batches: Count = 8
    """validation batches each time; all at the end is `leaplm perplexity`'s work"""
    checkpoint_every: Count = 200
    keep_checkpoints: Count = 1
    """older ones are removed"""


@dataclass(config=STRICT)
class RunConfig:
    """A training run."""

    seed: int = 0
    """of initialisation, data order and noise"""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    image: ImageConfig | None = None
    flow: FlowConfig | None = None
