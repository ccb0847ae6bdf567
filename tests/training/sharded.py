"""Two processes that shard a model by torch's `fully_shard` train it as one process does: what test_sharded.py starts.

torchrun --standalone --nproc_per_node 2 -m tests.training.sharded mtp
"""

import copy
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig

from flowlm import FlowLM, FlowLMConfig
from flowmap.objectives.tokens import CrossEntropy, ProgressiveKL, TokenStates
from flowmap.rng import Rng
from mtp import MTPForCausalLM
from mtp.batch import TokenBatch
from mtp.objective import JointCrossEntropy
from training.slices import SliceLoss

BATCH, VOCAB, LENGTH, STEPS = 8, 24, 12, 3


def mtp():
    """A trunk of two layers that is trained with its head, and where to cut it."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    trunk = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCAB, **sizes))
    model = MTPForCausalLM.from_trunk(trunk, "block-chain", block_size=3, rank=8)
    return model, JointCrossEntropy(), list(trunk.model.layers), words


def flow(objective):
    config = FlowLMConfig(vocab_size=VOCAB, length=LENGTH, codebook="embedding", state_size=4,
                          backbone={"width": 16, "depth": 2, "heads": 2})  # fmt: skip
    model = FlowLM(config)
    # a few-step objective asks the network as often as its rows need, which differs between processes: one piece, gathered once
    cuts = list(model.map.network.blocks) if isinstance(objective, CrossEntropy) else []
    return model.map, objective, cuts, states


KINDS = {
    "mtp": mtp,
    "flow": lambda: flow(ProgressiveKL(t_min=0.02)),
    "denoiser": lambda: flow(CrossEntropy(t_min=0.02)),
}


def words(tokens):
    return TokenBatch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool), LENGTH - 3)


def states(tokens):
    return TokenStates(tokens)


def train(module, batch_of, rank, processes):
    """Steps of the loop in short: sums over a process's slice, added up, divided once by the global count."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    own = torch.arange(BATCH).chunk(processes)[rank]
    losses = []
    for step in range(STEPS):
        tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step))
        loss = module(batch_of(tokens[own]), Rng(0, own, step), step)
        (loss.sum * processes).backward()  # gradients are averaged over processes, and their sum is wanted
        told = torch.stack([loss.sum.detach(), loss.count])
        if processes > 1:
            dist.all_reduce(told)
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad /= told[1]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((told[0] / told[1]).item())
    return losses


def whole(parameter):
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def main(kind):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, objective, cuts, batch_of = KINDS[kind]()
    model.double()  # AdamW makes steps of rounding where gradients are nearly zero
    alone = SliceLoss(copy.deepcopy(model), copy.deepcopy(objective), "float32")
    begun = {name: value.detach().clone() for name, value in alone.named_parameters()}
    wanted = train(alone, batch_of, 0, 1)

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    module = SliceLoss(model, objective, "float32")
    for part in [*cuts, module]:
        fully_shard(part, mesh=mesh)
    held = sum(p.to_local().numel() for p in module.parameters())
    everything = sum(p.numel() for p in module.parameters())
    assert held < 0.6 * everything, f"{held} of {everything} numbers held: nothing is cut"
    found = train(module, batch_of, dist.get_rank(), dist.get_world_size())

    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=1e-6)
    moved = 0.0
    for (name, mine), theirs in zip(module.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(
            whole(mine).detach(), theirs.detach(), rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        moved = max(moved, (theirs.detach() - begun[name]).abs().max().item())
    assert moved > 1e-3, "nothing was trained"
    if dist.get_rank() == 0:
        print(f"{kind}: losses {found}, weights of {everything} numbers equal to rounding, {held} on each process")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
