"""A law of short windows given as a table, behind the names of the baselines' maps; and small networks in its place."""

import itertools

import torch

from flowlm import AutoregressiveLM, MaskedDiffusionLM
from flowlm.discrete.model import AutoregressiveConfig, MaskedDiffusionConfig
from flowlm.token_map import Known

SIZES = {"backbone": {"width": 16, "depth": 2, "heads": 2}}


def every_window(vocab, length):
    """(V^N, N)."""
    return torch.tensor(list(itertools.product(range(vocab), repeat=length)))


class TableLaw:
    """p: (V^N,) of every_window. Every conditional that a masked-diffusion model may be asked for, by summing."""

    time_conditioning = False

    def __init__(self, p, vocab, length):
        self.p, self.blank, self.windows = p.double() / p.sum(), vocab, every_window(vocab, length)

    def denoise(self, x_t, t=None, context=None):
        fits = ((x_t[:, None] == self.windows) | (x_t[:, None] == self.blank)).all(-1)  # (B, V^N)
        joint = fits.double() * self.p
        one = torch.nn.functional.one_hot(self.windows, self.blank).double()
        law = torch.einsum("bw,wlv->blv", joint, one) / joint.sum(1)[:, None, None]
        return law.log()

    def logits(self, x_t, t=None, context=None):
        return Known(x_t, x_t != self.blank).settle(self.denoise(x_t))


def network(kind, vocab=3, length=3, wild=0.2, codebook="one-hot", **more):
    """kind: causal or masked. wild: deviation of its weights, 0 a fresh network."""
    torch.manual_seed(0)
    config, model = (
        (AutoregressiveConfig, AutoregressiveLM) if kind == "causal" else (MaskedDiffusionConfig, MaskedDiffusionLM)
    )
    made = model(config(vocab_size=vocab, length=length, codebook=codebook, state_size=4, **SIZES, **more)).eval()
    for parameter in made.parameters():
        if wild and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=wild)
    return made
