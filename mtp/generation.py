"""Joint decoding behind transformers' own `generate`: its configuration, processors, criteria and streamers.

    model.generate(ids, max_new_tokens=64, do_sample=True, verify="block")              a model with its head
    trunk.generate(ids, custom_generate=joint_generate, joint=model, verify="block")    the trunk, lent a head

With verify one of `speculative.VERIFY` the text follows the trunk's law under the processors given; "none" is direct
decoding. Streamers hear what a pass commits; stopping criteria are asked after every pass, not after every token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from mtp.decoding.direct import Decoded, decode
from mtp.decoding.speculative import decode_verified
from mtp.decoding.warp import Warp


@dataclass
class JointOutput(GenerateDecoderOnlyOutput):
    """sequences: (batch, prompt + new). tokens_per_forward: new tokens per pass of the trunk, the prompt's included."""

    tokens_per_forward: float | None = None


@torch.no_grad()
def joint_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: Any = None,
    *,
    joint: Any = None,
    verify: str = "token",
    block_size: int | None = None,
    stream: Any = None,
    **inputs: Any,
) -> JointOutput | Tensor:
    """What `generate(custom_generate=…)` calls. joint: a model with a head on this trunk, default `model` itself.
    stream: a streamer (generate keeps one named `streamer` to itself). Seeded by torch's own generator."""
    joint, config, attention_mask = joint or model, generation_config, inputs.get("attention_mask")
    warp, others = read_processors(logits_processor or [], config)
    if verify == "none" and others:
        raise ValueError(f"direct decoding takes no {type(others[0]).__name__}: give verify='token' or 'block'")
    seed = int(torch.randint(2**31, ()))
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    stops = config.eos_token_id
    listener = Listener(input_ids, stopping_criteria or [], stream)
    options: dict[str, Any] = {
        "max_new_tokens": config.max_length - input_ids.shape[1], "warp": warp, "seed": seed, "block_size": block_size,
        "stop_tokens": tuple(torch.as_tensor([] if stops is None else stops).reshape(-1).tolist()), "pad_token": int(pad),
        "listen": listener if listener.needed else None,
    }  # fmt: skip
    out: Decoded
    if verify == "none":
        out = decode(joint, input_ids, attention_mask, **options)
    else:
        process: Any = LogitsProcessorList(others) if others else None
        out = decode_verified(joint, input_ids, attention_mask, verify=verify, process=process, **options)
    if stream is not None:
        stream.end()
    sequences = torch.cat([input_ids, out.tokens[:, : int(out.lengths.max())]], 1)
    if not config.return_dict_in_generate:
        return sequences
    return JointOutput(sequences=sequences, tokens_per_forward=out.tokens_per_forward)  # type: ignore[arg-type]


def read_processors(processors: Any, config: Any) -> tuple[Warp, list[Callable[..., Tensor]]]:
    """Temperature, top-k and top-p as our own warp, applied last; all others as they are."""
    own = TemperatureLogitsWarper | TopKLogitsWarper | TopPLogitsWarper
    others = [p for p in processors if not isinstance(p, own)]
    if not config.do_sample:
        return Warp(0.0), others
    return Warp(config.temperature or 1.0, config.top_p or 1.0, config.top_k or 0), others


class Listener:
    """Streams what is committed and asks the stopping criteria, on the text of all rows so far."""

    def __init__(self, prompt: Tensor, criteria: Any, stream: Any) -> None:
        # lengths and end tokens are kept to by the decoders themselves
        self.criteria = [c for c in criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
        if stream is not None and len(prompt) > 1:
            raise ValueError("a streamer shows one row: decode one prompt at a time")
        self.stream, self.texts = stream, list(prompt)
        if stream is not None:
            stream.put(prompt.cpu())

    @property
    def needed(self) -> bool:
        return self.stream is not None or bool(self.criteria)

    def __call__(self, block: Tensor, count: Tensor) -> Tensor | None:
        counts = count.tolist()
        if self.stream is not None and counts[0]:
            self.stream.put(block[0, : counts[0]].cpu())
        if not self.criteria:
            return None
        ended = []
        for row, (tokens, n) in enumerate(zip(block, counts, strict=True)):
            self.texts[row] = torch.cat([self.texts[row], tokens[:n]])
            ended.append(any(bool(c(self.texts[row][None], None).all()) for c in self.criteria))
        return torch.tensor(ended, device=block.device)
