"""Joint decoding behind transformers' own `generate`: its configuration, processors, criteria and streamers.

    model.generate(ids, max_new_tokens=64, do_sample=True, verify="block")              a model with its head
    model.generate(ids, max_new_tokens=64, threshold=0.5)                               blocks as long as is likely to stand
    trunk.generate(ids, custom_generate=joint_generate, joint=model, verify="block")    the trunk, lent a head

With verify one of `speculative.VERIFY` the text follows the trunk's law under the processors given; "none" is direct
decoding, which takes temperature, top-k and top-p alone. What is not done here is refused, not left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from flowmap.warp import Warp
from mtp.decoding.confidence import Confidence, load_confidence
from mtp.decoding.direct import Decoded, decode
from mtp.decoding.speculative import decode_verified


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
    threshold: float = 0.0,
    confidence: Confidence | None = None,
    stream: Any = None,
    **inputs: Any,
) -> JointOutput | Tensor:
    """What `generate(custom_generate=…)` calls. joint: a model with a head on this trunk, default `model` itself.
    threshold: a draft ends where the chance that it stands falls below this, by confidence, default what `leaplm accept
    --calibrate` left beside the weights for the temperature and top-p asked for.
    stream: a streamer (generate keeps one named `streamer` to itself). Seeded by torch's own generator."""
    joint, config = joint or model, generation_config
    check_asked(config)
    warp, process = read_processors(logits_processor or LogitsProcessorList(), config)
    if verify == "none" and process is not None:
        names = ", ".join(type(p).__name__ for p in process)
        raise ValueError(f"direct decoding takes temperature, top-k and top-p alone, not {names}: verify the draft")
    stops = torch.as_tensor([] if config.eos_token_id is None else config.eos_token_id).reshape(-1).tolist()
    pad = next((n for n in (config.pad_token_id, *stops) if n is not None), 0)
    most = config.max_length - input_ids.shape[1]
    listener = Listener(input_ids, stopping_criteria or [], stream, stops, most)
    options: dict[str, Any] = {
        "max_new_tokens": most, "warp": warp, "seed": int(torch.randint(2**31, ())), "block_size": block_size,
        "stop_tokens": tuple(stops), "pad_token": int(pad), "listen": listener if listener.needed else None,
    }  # fmt: skip
    out: Decoded
    if threshold:
        options |= {"threshold": threshold, "confidence": confidence or load_confidence(Path(joint.name_or_path), warp)}
    if verify == "none" and not threshold:
        out = decode(joint, input_ids, inputs.get("attention_mask"), **options)
    else:
        out = decode_verified(joint, input_ids, inputs.get("attention_mask"), verify=verify, process=process, **options)
    if stream is not None:
        stream.end()
    sequences = torch.cat([input_ids, out.tokens[:, : int(out.lengths.max())]], 1)
    if not config.return_dict_in_generate:
        return sequences
    return JointOutput(sequences=sequences, tokens_per_forward=out.tokens_per_forward)  # type: ignore[arg-type]


def check_asked(config: Any) -> None:
    for name, neutral in (("num_beams", 1), ("guidance_scale", 1), ("penalty_alpha", 0), ("dola_layers", None)):
        if getattr(config, name, None) not in (None, neutral):
            raise ValueError(f"joint decoding has no {name}: leave it out, or use the trunk's own generate")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ValueError(f"joint decoding returns sequences and tokens_per_forward, no {name}")


def read_processors(processors: LogitsProcessorList, config: Any) -> tuple[Warp, Any]:
    """The draft's warp, and what stands in its place for the trunk: None where the warp is all there is, else the whole
    list in transformers' own order."""
    warp = Warp(0.0)
    if config.do_sample:
        values = {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
        warp = Warp(**{name: value for name, value in values.items() if value is not None})
    kinds = {TemperatureLogitsWarper: "temperature", TopKLogitsWarper: "top_k", TopPLogitsWarper: "top_p"}
    names = [kinds.get(type(p)) for p in processors]
    ours = len(set(names)) == len(names) and all(
        name is not None and getattr(p, name) == getattr(warp, name) for name, p in zip(names, processors, strict=True)
    )
    return warp, None if ours else processors


class Listener:
    """Streams what is committed, and asks the stopping criteria after every token, on each row's text so far."""

    def __init__(self, prompt: Tensor, criteria: Any, stream: Any, stops: list[int], most: int) -> None:
        # lengths and end tokens are kept to by the decoders themselves
        self.criteria = [c for c in criteria if not isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
        if stream is not None and len(prompt) > 1:
            raise ValueError("a streamer shows one row: decode one prompt at a time")
        self.stream, self.stops, self.left = stream, set(stops), [most] * len(prompt)
        self.texts = list(prompt)
        if stream is not None:
            stream.put(prompt.cpu())

    @property
    def needed(self) -> bool:
        return self.stream is not None or bool(self.criteria)

    def __call__(self, block: Tensor, count: Tensor) -> Tensor:
        kept = []
        for row, (tokens, n) in enumerate(zip(block, count.tolist(), strict=True)):
            whole = self._whole(tokens[: min(n, self.left[row])])
            ends = next((i for i in range(1, len(whole) + 1) if self._asked(row, whole[:i])), -1)
            said = whole if ends < 0 else whole[:ends]
            self.texts[row] = torch.cat([self.texts[row], said])
            self.left[row] -= len(said)
            if self.stream is not None and len(said):
                self.stream.put(said.cpu())
            kept.append(ends)
        return torch.tensor(kept, device=block.device)

    def _whole(self, tokens: Tensor) -> Tensor:
        """Up to the first end token."""
        end = next((i for i, token in enumerate(tokens.tolist(), 1) if token in self.stops), len(tokens))
        return tokens[:end]

    def _asked(self, row: int, tokens: Tensor) -> bool:
        text = torch.cat([self.texts[row], tokens])[None]
        return any(bool(torch.as_tensor(criterion(text, None)).all()) for criterion in self.criteria)
