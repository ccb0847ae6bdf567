"""`leaplm-mtp` for lm-eval: a trunk, with or without a joint head, by one of three decoders.

trunk     the trunk's own law, token by token: exact, for any causal LM of transformers
block     direct decoding: the head's law in consecutive blocks from the context's end, which is another law than the
          trunk's, and exact where the head is (else a bound, of DRAWS of its noise)
verified  what the head drafts, judged by the trunk: the trunk's law again, written in fewer passes
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.utils import resolve_max_length

from eval.harness.base import HarnessModel, Writing
from eval.harness.scoring import Span, score_spans
from eval.loading import load_run
from mtp.decoding.direct import Decoded, decode, pad_left
from mtp.decoding.speculative import VERIFY, decode_verified

DECODERS = ("trunk", "block", "verified")


@register_model("leaplm-mtp")
class LeapMTP(HarnessModel):
    """pretrained: a run directory, a checkpoint, a model folder, or any causal LM's name. decoder: one of DECODERS, default
    trunk. block: tokens of a block, default the head's own. verify: the rule of decoder=verified. dtype: of the weights;
    logits and likelihoods are fp32 in any case. max_length: tokens read at once, default the trunk's positions."""

    def __init__(
        self,
        pretrained: str,
        decoder: str = "trunk",
        block: int | None = None,
        verify: str = "token",
        dtype: str = "float32",
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        if decoder not in DECODERS:
            raise ValueError(f"decoder {decoder!r}: known are {', '.join(DECODERS)}")
        if verify not in VERIFY:
            raise ValueError(f"verify {verify!r}: known are {', '.join(VERIFY)}")
        super().__init__(**options)
        self.run = load_run(str(pretrained), dtype, self._device)
        self.model, self.tokenizer = self.run.model, self.run.tokenizer
        self.decoder, self.verify = decoder, verify
        self.block = 1 if decoder == "trunk" else block or self.run.block_size
        drafts = decoder == "block" or (decoder == "verified" and verify != "jacobi")
        if drafts and not 2 <= self.block <= self.run.block_size:
            largest = f"its head reaches {self.run.block_size}" if self.model.head else "it has no joint head"
            raise ValueError(f"decoder={decoder} with blocks of {self.block} tokens, but {pretrained}: {largest}")
        config = self.model.trunk.config.get_text_config()
        self.max_length = max_length or resolve_max_length(config, self.tokenizer)
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = [ends] if isinstance(ends, int) else ends or []
        self.stops = tuple({self.eot_token_id, *ends})

    def score(self, spans: Sequence[Span], want_greedy: bool) -> list[tuple[float, bool]]:
        return score_spans(self.model, spans, self.scored_block, self.seed, want_greedy)

    @property
    def scored_block(self) -> int:
        """Verified decoding writes by the trunk's law, so that is what scores."""
        return self.block if self.decoder == "block" else 1

    def write(self, prompts: Sequence[list[int]], how: Writing, addresses: Sequence[int]) -> list[list[int]]:
        options: dict[str, Any] = {
            "max_new_tokens": min(how.new, self.max_length - self.room(how.new)), "warp": how.warp, "seed": self.seed, "rows": torch.tensor(addresses),
            "stop_tokens": self.stops, "pad_token": self.eot_token_id,
            "listen": StopTexts(self.tokenizer, how.until, len(prompts)) if how.until else None,
        }  # fmt: skip
        ids, mask = pad_left(list(prompts), self.eot_token_id)
        if self.decoder == "verified":
            block = None if self.verify == "jacobi" else self.block
            out: Decoded = decode_verified(self.model, ids, mask, verify=self.verify, block_size=block, **options)
        else:
            out = decode(self.model, ids, mask, block_size=self.block, **options)
        return [row[:n] for row, n in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True)]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval keeps beside the results, and our records read."""
        joint = self.scored_block > 1
        return {
            "model_num_parameters": self.model.num_parameters(), "model_dtype": str(self.model.dtype),
            "leaplm": {
                "run": self.run.name, "decoder": self.decoder, "block": self.block, "max_length": self.max_length,
                "subject": self.run.subject if joint else "trunk", "verify": self.verify if self.decoder == "verified" else "none",
                "kind": "exact" if not joint or self.run.head.exact else "bound", "seed": self.seed,
                "train_seed": self.run.train_seed if joint else self.run.trunk_seed, "ema": self.run.ema,
            },
        }  # fmt: skip


class StopTexts:
    """Hears every block, and ends a row once one of the strings stands in its new text."""

    def __init__(self, tokenizer: Any, until: Sequence[str], rows: int) -> None:
        self.tokenizer, self.until = tokenizer, until
        self.reach = max(len(text.encode()) for text in until)  # a token holds a byte at least
        self.tokens: list[list[int]] = [[] for _ in range(rows)]

    def __call__(self, block: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        ends = []
        for row, tokens, n in zip(self.tokens, block.tolist(), count.tolist(), strict=True):
            row += tokens[:n]
            text = self.tokenizer.decode(row[-(n + self.reach) :]) if n else ""
            ends.append(n if any(stop in text for stop in self.until) else -1)
        return torch.tensor(ends, device=block.device)
