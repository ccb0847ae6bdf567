"""What steps the weights: AdamW for all, or Muon for the hidden matrices and AdamW for the rest."""

import torch
from torch import nn

from training.fields import OptimizerConfig


def make_optimizers(module: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Over what requires a gradient. Decay falls on matrices only."""
    hidden = hidden_matrices(module) if config.muon else []
    taken = {id(p) for p in hidden}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    made: list[torch.optim.Optimizer] = []
    if groups:
        made.append(torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True))
    if hidden:
        made.append(
            torch.optim.Muon(
                hidden, config.lr, config.weight_decay, momentum=config.beta2, adjust_lr_fn="match_rms_adamw"
            )
        )
    return made


def hidden_matrices(module: nn.Module) -> list[torch.Tensor]:
    """Weights of linear layers that no table of words shares: an unembedding is not one."""
    words = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for part in module.modules():
        unembedding = getattr(part, "get_output_embeddings", lambda: None)()
        words.add(id(getattr(unembedding, "weight", None)))
    found = {id(m.weight): m.weight for m in module.modules() if isinstance(m, nn.Linear)}
    return [weight for key, weight in found.items() if key not in words and weight.requires_grad]
