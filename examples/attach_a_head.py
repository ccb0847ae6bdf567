"""A joint head on a causal LM you have, trained in a loop of your own, and decoded from.

    python examples/attach_a_head.py [MODEL]

MODEL: any transformers causal LM by name or path; without one, a tiny fresh Llama on a toy language
in which every second word repeats the first, which no independent head can say.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from flowmap.rng import Rng
from mtp import MTPForCausalLM, Warp, decode
from mtp.batch import TokenBatch
from mtp.objective import JointCrossEntropy


def main(name: str | None = None, steps: int = 200) -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    trunk = AutoModelForCausalLM.from_pretrained(name) if name else tiny_trunk()
    model = MTPForCausalLM.from_trunk(trunk, head="recurrent-chain", block_size=2, rank=32)
    objective = JointCrossEntropy()  # JointCrossEntropy(frozen_trunk=True) trains the head alone
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        batch = repeated_pairs(64, model.get_output_embeddings().weight.shape[0])
        loss = objective(model, batch, rng=Rng(0, torch.arange(64), step), step=step)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()

    out = decode(model.eval(), torch.zeros(500, 1, dtype=torch.int64), max_new_tokens=2, warp=Warp(temperature=1.0))
    first, second = out.tokens.T
    agreement = (first == second).float().mean().item()
    print(f"{out.tokens_per_forward:.0f} tokens a pass; both words agree in {agreement:.1%} of draws")
    return agreement


def tiny_trunk() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32, **sizes))


def repeated_pairs(batch: int, vocab_size: int, length: int = 9) -> TokenBatch:
    """0, a, a, b, b, …: fresh pairs in every row, one document each."""
    words = torch.randint(1, min(vocab_size, 32), (batch, length // 2 + 1)).repeat_interleave(2, 1)
    tokens = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), words], 1)
    return TokenBatch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), length - 1)


if __name__ == "__main__":
    main(*sys.argv[1:2])
