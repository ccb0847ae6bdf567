"""What our models share under lm-eval: its tokenisation, rolling windows, batches, processes and generation requests.

A model adds two methods: `score`, spans → log-likelihoods in nats, and `write`, prompts → tokens. Requests are taken longest
first; results do not depend on the batch size, nor on how many processes share the requests, because random numbers are
addressed by the request itself.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from eval.harness.scoring import Span, hash_of
from flowmap.warp import Warp
from training.data.tokenizer import start_token

LARGEST_BATCH = 64
"""Where the batch size is left to us: made smaller until it fits."""
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1, "typical_p": 1.0, "min_p": 0.0}
"""What a task may ask of transformers' generate without changing anything."""
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Writing:
    """How one generation request is written. new: tokens at most. until: strings that end it."""

    new: int
    warp: Warp
    until: tuple[str, ...]


class HarnessModel(TemplateLM):
    """device: where it runs, unless several processes share the work. max_length: tokens read at once. batch_size: rows, or
    "auto". add_bos_token: begin every context with the start token; None: as the tokenizer does. seed: of draws, default
    torch's own, which lm-eval sets by --seed."""

    def __init__(
        self,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        add_bos_token: bool | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available() or device == "cpu")
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if str(device).startswith("cuda") and not torch.cuda.is_available():  # lm-eval asks for cuda:0 unasked
            device = None
        self._device = self.accelerator.device
        if device is not None and self._world_size == 1:
            self._device = torch.device(device)
        self.add_bos_token, self.seed = add_bos_token, torch.initial_seed() if seed is None else seed
        automatic = str(batch_size).startswith("auto")
        if not automatic and not (str(batch_size or 1).isdigit() and int(batch_size or 1) > 0):
            raise ValueError(f"batch_size {batch_size!r}: a whole number above 0, or auto")
        self.batch_size: int | str = "auto" if automatic else int(batch_size or 1)
        self.largest = int(max_batch_size or LARGEST_BATCH) if automatic else int(batch_size or 1)

    max_length: int
    max_gen_toks = 256

    def score(self, spans: Sequence[Span], want_greedy: bool) -> list[tuple[float, bool]]:
        """One batch of spans → their sums in nats, and whether greedy decoding would write them."""
        raise NotImplementedError

    def write(self, prompts: Sequence[list[int]], how: Writing, addresses: Sequence[int]) -> list[list[int]]:
        """One batch of prompts → the tokens written behind each, up to an end token. addresses: of its random numbers."""
        raise NotImplementedError

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return start_token(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text that begins with the start token's own text is not given another."""
        asked = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            asked = False
        if asked is None:
            return self.tokenizer.encode(string)
        tokens = self.tokenizer.encode(string, add_special_tokens=asked)
        begin = asked and add_special_tokens is None  # tokenizers without a template of their own add none
        return self._begun(tokens) if begin else tokens

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Each text on its own in disjoint windows, whose contexts reach back as far as the model reads."""
        windows, owner = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owner.append(number)
        sums = [0.0] * len(requests)
        for number, (value, _) in zip(owner, self._loglikelihood_tokens(windows, disable_tqdm, False), strict=True):
            sums[number] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def span(self, context: Sequence[int], continuation: Sequence[int]) -> Span:
        """What is read of a request: of a causal trunk, all but its last token."""
        return Span.of(context, continuation, self.max_length + 1, 1)

    def _loglikelihood_tokens(  # type: ignore[override]
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, want_greedy: bool = True
    ) -> list[tuple[float, bool]]:
        spans = [self.span(context, continuation) for _, context, continuation in requests]
        cut = sum(len(c) + len(x) > len(span.tokens) for span, (_, c, x) in zip(spans, requests, strict=True))
        if cut:
            logger.warning("%d contexts are cut from the left to the %d tokens that are read", cut, self.max_length)
        whole = [i for i, span in enumerate(spans) if span.start < len(span.tokens)]
        order = sorted(whole, key=lambda i: (-len(spans[i].tokens), spans[i].tokens))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)  # of a continuation without tokens

        def keep(part: list[int]) -> None:
            for i, scored in zip(part, self.score([spans[i] for i in part], want_greedy), strict=True):
                found[i] = scored
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], scored)

        self._in_batches(order, lambda i: spans[i].row, keep, "loglikelihood", disable_tqdm)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts = [""] * len(requests)
        prompts = [self._prompt(request) for request in requests]
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        addresses = self._addresses(requests)
        asked = [
            self._writing(requests[numbers[0]].args[1]) for numbers in groups.values()
        ]  # refused before any is written
        for how, numbers in zip(asked, groups.values(), strict=True):
            room = self.room(how.new)
            order = sorted(numbers, key=lambda i: (-len(prompts[i][-room:]), prompts[i]))

            def keep(part: list[int], how: Writing = how, room: int = room) -> None:
                written = self.write([prompts[i][-room:] for i in part], how, [addresses[i] for i in part])
                for i, tokens in zip(part, written, strict=True):
                    text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                    texts[i] = postprocess_generated_text(text, list(how.until), None)
                    self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])

            self._in_batches(order, lambda i: i, keep, "generate_until", disable_tqdm)
        return texts

    def room(self, new: int) -> int:
        """Tokens of a prompt that are kept, from its right; where a window is no longer than `new`, half of it."""
        return self.max_length - new if new < self.max_length else max(1, self.max_length // 2)

    def _prompt(self, request: Any) -> list[int]:
        """A suite's prompts begin a document, and say so; others are as the tokenizer makes them."""
        tokens = self.tok_encode(request.args[0])
        begins = isinstance(request.doc, dict) and request.doc.get("begins_document")
        return self._begun(tokens) if begins or not tokens else tokens

    def _begun(self, tokens: list[int]) -> list[int]:
        return tokens if tokens[:1] == [self.prefix_token_id] else [self.prefix_token_id, *tokens]

    def _writing(self, asked: dict[str, Any]) -> Writing:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        eos = self.tokenizer.decode(self.eot_token_id)
        until = tuple(s for s in handle_stop_sequences(kwargs.pop("until"), eos) if s)
        new, sampled = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
        warp = {name: kwargs.pop(name) for name in ("temperature", "top_p", "top_k") if kwargs.get(name) is not None}
        for name, value in kwargs.items():
            if value is not None and NEUTRAL.get(name) != value:
                raise ValueError(f"{name}={value!r}: these decoders take temperature, top_p and top_k; leave it out")
        if new < 1:
            raise ValueError(f"max_gen_toks {new} must be 1 or above")
        return Writing(new, Warp(**warp) if sampled else Warp(0.0), until)

    def _addresses(self, requests: Sequence[Any]) -> list[int]:
        """One for each request by its task, document and text; repeats of one request are told apart by their number."""
        seen: Counter = Counter()
        made = []
        for request in requests:
            key = (request.task_name, request.doc_id, request.idx, request.args[0])
            made.append(hash_of(*key, seen[key]))
            seen[key] += 1
        return made

    def _in_batches(
        self, order: list[int], row: Callable[[int], Any], work: Callable[[list[int]], None], what: str, quiet: bool
    ) -> None:
        """order: numbers of requests; those of one row, which stand together, count once. An automatic batch that does not
        fit is made smaller, and all begins again: the longest come first, so that is soon."""

        def run(batch_size: int) -> None:
            with tqdm(total=len(order), desc=what, disable=quiet or self.rank != 0) as bar:
                for part in batches(order, row, batch_size):
                    work(part)
                    bar.update(len(part))

        if self.batch_size == "auto":
            find_executable_batch_size(run, self.largest)()
        else:
            run(self.largest)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.world_size == 1 else self.accelerator.gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.world_size == 1:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()


def batches(order: Sequence[T], row: Callable[[T], Any], size: int) -> Iterator[list[T]]:
    """Pieces of order that hold so many different rows."""
    part: list[T] = []
    rows: set[Any] = set()
    for item in order:
        if len(rows) == size and row(item) not in rows:
            yield part
            part, rows = [], set()
        part.append(item)
        rows.add(row(item))
    if part:
        yield part
