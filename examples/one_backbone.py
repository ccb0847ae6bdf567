"""One backbone for three kinds of states: patches of an image, codes of tokens, a head's block.

    python examples/one_backbone.py [STEPS]

What changes is what a state vector is and what stands beside the states; network, map, path, samplers and the shape
of an objective are the same.
"""

import sys

import torch

from flowmap.backbone import Backbone, BackboneConfig, Context
from flowmap.codebook import OneHot
from flowmap.maps import FlowMap
from flowmap.objectives import FlowMatching, StateBatch
from flowmap.objectives.tokens import CrossEntropy, TokenStates
from flowmap.path import LinearPath
from flowmap.rng import Rng
from flowmap.samplers import Guided, ddim, uniform_times
from imm.data import load_images
from imm.model import ImageFlow, ImageFlowConfig

WORDS = ("high", "card", "one", "two", "pair", "full", "house", "straight", "flush", "royal")
HANDS = ("high card", "one pair", "two pair", "full house", "straight flush", "royal flush")
TOKENS = torch.tensor([[WORDS.index(word) for word in hand.split()] for hand in HANDS])


def main(steps: int = 400) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return {"images": images(steps), "tokens": tokens(steps), "head": head(steps)}


def images(steps: int) -> float:
    """States are 4 patches of 4×4 pixels, the context is a class. Returns how far the drawn ones lie from
    their classes' means."""
    digits = load_images("digits")
    data, labels = digits.scaling.to_model(digits.train), torch.as_tensor(digits.train_labels)
    model = ImageFlow(
        ImageFlowConfig(patch=4, num_classes=10, backbone={"width": 64, "depth": 2, "heads": 4})  # type: ignore[call-arg]
    )

    def batch(rng: Rng) -> StateBatch:
        rows = (rng.uniform("rows", 64) * len(data)).long()
        return StateBatch(data[rows], model.condition(labels[rows]))

    fit(model.map, FlowMatching(), batch, steps)
    label = torch.arange(100) % 10
    x = model.map.path.draw_noise(Rng(1, torch.arange(100)), "x", torch.zeros(100, 1, 8, 8))
    drawn = ddim(Guided(model.map, model.condition(label)), x, uniform_times(8)).x
    means = torch.stack([data[labels == k].mean(0) for k in range(10)])
    off, own = (float((x - means[k]).abs().mean()) for x, k in ((drawn, label), (data, labels)))
    print(f"images: 8 steps of DDIM land {off:.3f} from their classes' mean images, the digits themselves {own:.3f}")
    return off


def tokens(steps: int) -> float:
    """States are the one-hot codes of two words, nothing beside them. Returns the share of valid hands."""
    network = Backbone(BackboneConfig(state_size=10, width=64, depth=2, heads=4, max_positions=2))
    model = FlowMap(network, LinearPath(), data_scale=1.0, codebook=OneHot(10))
    fit(model, CrossEntropy(), lambda rng: TokenStates(TOKENS[(rng.uniform("hand", 64) * 6).long()]), steps)
    x = model.path.draw_noise(Rng(1, torch.arange(500)), "x", torch.zeros(500, 2, 10))
    written = model.codebook.decode(ddim(Guided(model), x, uniform_times(32, end=1e-3)).x)
    valid = float((written[:, None] == TOKENS).all(-1).any(1).float().mean())
    print(f"tokens: {valid:.0%} of hands written in 32 steps are hands")
    return valid


def head(steps: int) -> float:
    """States are a block's two codes, a trunk's state stands beside them: here it says how the hand begins. Returns
    the share of blocks that are a hand and begin so."""
    network = Backbone(BackboneConfig(state_size=10, width=64, depth=2, heads=4, max_positions=2, vector_size=16))
    model = FlowMap(network, LinearPath(), data_scale=1.0, codebook=OneHot(10))
    trunk_states = torch.randn(10, 16)

    def batch(rng: Rng) -> TokenStates:
        block = TOKENS[(rng.uniform("hand", 64) * 6).long()]
        return TokenStates(block, Context(vector=trunk_states[block[:, 0]]))

    fit(model, CrossEntropy(), batch, steps)
    asked = TOKENS[torch.arange(600) % 6, 0]
    x = model.path.draw_noise(Rng(1, torch.arange(600)), "x", torch.zeros(600, 2, 10))
    context = Context(vector=trunk_states[asked])
    written = model.codebook.decode(ddim(Guided(model, context), x, uniform_times(4, end=1e-3)).x)
    right = (written[:, None] == TOKENS).all(-1).any(1) & (written[:, 0] == asked)
    print(f"head: {right.float().mean():.0%} of blocks written in 4 steps go on as the trunk's state says")
    return float(right.float().mean())


def fit(model, objective, batch, steps: int, size: int = 64) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for step in range(steps):
        rng = Rng(0, torch.arange(size), step)
        loss = objective(model, batch(rng), rng=rng, step=step)
        (loss.sum / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
