"""The fields of runs that train a two-time map: few-step images and flow language models."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from training.field_types import PAIRS, STRICT, Count, Share, Size


@dataclass(config=STRICT)
class ImageConfig:
    """A few-step image model instead of a language model."""

    name: str = "digits"
    """digits (scikit-learn's, no network), mnist, fashion-mnist, cifar10, a folder of class folders, or a Hub set"""
    size: Count | None = None
    """folders and Hub sets: cut square to so many pixels"""
    selection: bool = False
    """leave the test split alone: a fifth of the training images stands in its place, to choose settings on"""
    flip: bool = False
    """mirror half of the images"""
    objective: str = "flow-matching"
    """flow-matching, imm, shortcut, mean-flow, improved-mean-flow, lagrangian, eulerian, progressive, consistency,
    consistency-map, continuous-consistency, trajectory, terminal-velocity, alpha-flow, drifting, energy, or your own as module:Class"""
    options: Annotated[dict[str, int | float | bool | str], PAIRS] = field(default_factory=dict)
    """the objective's own: k, group_size, kernel, diagonal, power, times and spans, of t alone and of t and s (uniform or
    logit-normal), …; low_discrepancy true:
    times spread evenly over the batch"""
    path: Literal["linear", "cosine"] = "linear"
    """between image and noise"""
    parameterisation: Literal["euler-fm", "simple-edm", "endpoint"] = "euler-fm"
    """what the network's output stands for"""
    patch: Count = 2
    """pixels of a patch's side; one patch is one state of the transformer"""
    width: Count = 128
    depth: Count = 4
    heads: Count = 4
    positions: Literal["learned", "rope", "learned-2d", "rope-2d", "none"] = "learned-2d"
    """how patches know their place"""
    time_scale: Size | None = None
    """of the time embeddings: 1000 tells near times apart; a few units are smooth, for objectives with derivatives; default: the
    objective's own"""
    embed: Literal["s", "t-s"] = "s"
    """what the second time embedding is given"""
    use_s: bool = True
    """False: the network is not told where it lands"""
    conditional: bool = True
    """tell the network the class"""
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """share of images whose class is not told, for guidance"""
    attention: str = "sdpa"
    """backend: sdpa, sdpa_math, eager, flex_attention, flash_attention_2, flash_attention_4"""


@dataclass(config=STRICT)
class FlowConfig:
    """A flow language model instead of a trunk with a head: whole windows from noise in a few steps."""

    name: str = "flow"
    """what records call it, the preset's name"""
    objective: str = "kl-psd"
    """cross-entropy, endpoint, vlb: the denoiser alone; decoded: that of contextual codes; k-step: what so many ancestral steps are
    charged for; kl-psd, trajectory, esd, lsd, categorical, imm, energy: the few-step map
    too; the baselines autoregressive and masked (diffusion), which have tokens for states; or your own as module:Class"""
    options: Annotated[dict[str, int | float | bool | str], PAIRS] = field(default_factory=dict)
    """the objective's own: diagonal, boundary, power, t_min, teacher_decay, self_conditioning, fixed_point; of trajectory: num_steps, jumps, carry (a jump hears what the one before it expected), memory (and so many
    numbers of each state that the one before wrote for it); times (uniform,
    logit-normal; running, gumbel: where cross-entropy is found to fall; one-hot: decode-error, decode-error-mixed; vlb: learned);
    low_discrepancy true: times spread evenly over the batch; of masked: blanks (time, count), time_conditioning; …"""
    start: str | None = None
    """begin with the weights of this run, of the same sizes and codes, instead of fresh ones; path and objective may differ"""
    teacher: str | None = None
    """a run whose frozen denoiser is learned from in the place of the text's tokens (objectives with a few-step part)"""
    denoiser_first: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | None, BeforeValidator(lambda share: share or None)
    ] = None
    """share of the steps in which the denoiser alone is trained, before the jumps are too (objectives with a few-step part); default none"""
    project: bool = False
    """take out of the few-step loss's gradient what goes against the denoiser's"""
    codebook: str = "one-hot"
    """what a token's state is: one-hot, embedding, sphere, bits, table, contextual, or your own as module:Class; sphere: learned
    codes on great circles, with path slerp; table: an encoder's, frozen; contextual: what an encoder makes of it in its whole
    window, frozen, with objective decoded"""
    state_size: Count = 32
    """of learned codes, and of an encoder's after PCA"""
    learn_codes: bool = True
    """embedding, sphere: False keeps the codes as they were drawn, or as flow.start has them"""
    encoder: str | None = None
    """table: the transformers model that gives the codes, by name or path; contextual: of this run's tokens, or a run of a trunk
    or of masked diffusion"""
    encoder_states: Literal["input", "hidden"] = "input"
    """table: of its input embedding, or what it makes of each token alone"""
    prior: bool = False
    """add to the logits what a token's own state says of it (the matched filter)"""
    prior_ramp: Annotated[float, Field(ge=0, le=1)] = 0.05
    """prior: share of the steps over which it is brought in"""
    path: Literal["linear", "cosine", "slerp"] = "linear"
    """between code and noise; slerp: on the sphere, for cross-entropy and jumps"""
    noise_scale: Size = 1.0
    """deviation of the noise"""
    prompts: Annotated[float, Field(ge=0, le=1)] = 0.0
    """text: share of the windows that begin with a known stretch of any length"""
    prompt_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the windows whose known tokens are not shown, for guidance"""
    block_lengths: list[Count] = field(default_factory=list)
    """write a window block after block, each behind the tokens of those before it: one model for blocks of these lengths,
    which divide the window; none: it is written as a whole"""
    noise: Literal["sample", "block", "token"] = "sample"
    """what has a time of its own in training; token: tokens may be written one some steps after the other"""
    causal: bool = False
    """without blocks: no token looks at those behind it"""
    decoder: Literal["softmax", "contextual"] = "softmax"
    """how tokens are read off finished states; contextual: by a causal decoder of all of them, trained along"""
    decoder_depth: Count = 2
    """contextual: of that decoder, as wide as the map"""
    decoder_latest: Share = 1.0
    """contextual: the latest time at which the last jump starts that it learns to read; 1 over the number of steps"""
    width: Count = 128
    depth: Count = 4
    heads: Count = 4
    positions: Literal["learned", "rope", "rope+learned", "none"] = "rope"
    """how tokens know their place; rope+learned: where a token's meaning hangs on its place in the whole, a square of a grid"""
    time_scale: Size = 1000.0
    """of the time embeddings: 1000 tells near times apart; a few units are smooth, for objectives with derivatives"""
    use_s: bool = True
    """False: the network is not told where it lands"""
    attention: str = "sdpa"
    """backend: sdpa, sdpa_math, eager, flex_attention, flash_attention_2, flash_attention_4"""
