"""The posterior of windows in blocks under a law given as a table, behind a token map's names: all there is to know."""

import torch

from flowmap.codebook import OneHot
from flowmap.path import LinearPath, expand
from tests.flowlm.windows_law import every_window


class BlockOracle:
    """p: (V^N,) of every_window. Of each noisy block the exact posterior given its own states and the clean text before it;
    context: `Blocks`."""

    t_min = 1e-3

    def __init__(self, p, vocab, length):
        self.p, self.windows = p.double() / p.sum(), every_window(vocab, length)
        self.codebook, self.path = OneHot(vocab).double(), LinearPath()
        self.codes = torch.nn.functional.one_hot(self.windows, vocab).double()  # (W, N, V)

    def nats(self, tokens):
        """−log P, (B,)."""
        return -(tokens[:, None] == self.windows).all(-1).double().matmul(self.p).log()

    def entropy(self):
        return float(torch.special.entr(self.p).sum())

    def cross_entropy(self, tokens, size):
        """Σ_l −log P(x^l | the blocks before its own), (B,): what independent tokens of a block cost."""
        total = 0.0
        for place in range(self.windows.shape[1]):
            first = place // size * size
            same = (tokens[:, None, :first] == self.windows[:, :first]).all(-1).double() * self.p
            fits = same * (tokens[:, None, place] == self.windows[:, place])
            total = total - (fits.sum(1) / same.sum(1)).log()
        return total

    def logits(self, x_t, t, s, context):
        """t: (B,) or (B, N)."""
        t = expand(t, x_t[..., 0]).expand(x_t.shape[:2]).clamp_min(1e-6)
        told = torch.einsum("bnv,wnv->bwn", expand((1 - t) / t**2, x_t) * x_t, self.codes)
        size = int(context.size[0])
        parts = []
        for first in range(0, x_t.shape[1], size):
            before = (context.tokens[:, None, :first] == self.windows[:, :first]).all(-1)
            log_w = self.p.log() + told[..., first : first + size].sum(2)
            weight = log_w.masked_fill(~before, -torch.inf).softmax(1)
            parts.append(torch.einsum("bw,wnv->bnv", weight, self.codes[:, first : first + size]))
        return context.settle((torch.cat(parts, 1) + 1e-30).log())
