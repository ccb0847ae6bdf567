"""A flow map over a block: positions 2..K go from noise to tokens together, in as many steps as asked.

    q(x_2..x_K | h, x_1) = E_z Π_k p_{1/n→0}(X_{1→1/n}(z))[x_k],    z ~ N(0, I)           (math.md §5, sampler NLL; §6)

p and X are the map's (`block_map`), X_{1→1/n} its n − 1 jumps on an even grid; then one token is drawn from every
position's last softmax. A normalised law without a closed form: `estimate_log_prob` averages over noise.

log_q and conditional of a draft are the law *given its z*, in which positions are independent. Verification may use
it: the target knows nothing of z and the tokens are drawn from just that law, so a rule that is lossless for every
draft law is so for every z, hence on the whole. They are no score of the block.

Shapes: N anchors, M = K−1 states, V words, d the trunk's width.
"""

import torch
from torch import Tensor, nn

from flowmap.backbone import BackboneConfig
from flowmap.draws import Estimate, every_draw, rows_of
from flowmap.objectives.tokens import ProgressiveKL, TokenStates, VariationalBound
from flowmap.path import expand
from flowmap.rng import Rng
from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.heads.block_map import BlockMap, Given
from mtp.heads.readout import PositionProjection
from mtp.losses.linear_nll import row_nll, weighted_nll


class FlowMapHead(JointHead):
    """steps: n, may be set at any time. Temperature and top-p bend the last softmax, the noise stays as it is."""

    name, exact = "flow-map", False

    def __init__(
        self,
        hidden_size,
        vocab_size,
        block_size,
        *,
        embedding_size: int | None = None,
        state_size: int = 32,
        width: int | None = None,
        num_layers: int = 2,
        num_heads: int | None = None,
        projection_width: int | None = None,
        steps: int = 1,
        diagonal: float = 0.75,
        boundary: float = 1 / 8,
        t_min: float = 0.05,
        scored: float = 1 / 8,
    ) -> None:
        """state_size: of a code; width: of the backbone, default hidden_size. In training: diagonal, the share of
        anchors that learn p_{t→t}; boundary, of the others, the share that learn p_{1→0}; t_min, the least t; scored,
        the share of anchors whose nll is reported."""
        super().__init__(hidden_size, vocab_size, block_size)
        self.steps, self.scored = steps, scored
        width, embedding_size = width or hidden_size, embedding_size or hidden_size
        if num_heads is None:
            num_heads = next((n for n in range(max(1, width // 64), 0, -1) if width % (2 * n) == 0), 1)
        self.projection = PositionProjection(hidden_size, block_size - 1, projection_width or 2 * hidden_size)
        self.hidden_norm, self.token_norm = nn.RMSNorm(hidden_size), nn.RMSNorm(embedding_size)
        config = BackboneConfig(
            state_size, width, num_layers, num_heads, output_size=hidden_size, max_positions=block_size - 1,
            vector_size=hidden_size + embedding_size,
        )  # fmt: skip
        self.map = BlockMap(config, vocab_size)
        self.objective = ProgressiveKL(diagonal, boundary=boundary, t_min=t_min)
        self.bound = VariationalBound(t_min, 1.0, "logistic", scale=1.5)  # least variance on six hands

    def given(self, ctx: BlockContext, first: Tensor) -> Given:
        """first: (N,), x_1."""
        token = self.token_norm(nn.functional.embedding(first, ctx.embedding))
        vector = torch.cat([self.hidden_norm(ctx.hidden), token], -1)
        return Given(vector, self.projection(ctx.hidden, self.block_size - 1), ctx.unembedding, ctx.bias)

    def nll(self, ctx, targets, mask, weights=None, rng: Rng | None = None) -> BlockNLL:
        """rng: addressed by anchor. loss: of every anchor one of two, with a weight for every position,

            −log p_{t→t}(x_t)[x_k]     or     KL(sg[a·p_{t→u}(x_t) + (1−a)·p_{u→s}(X_{t→u}(x_t))] ‖ p_{t→s}(x_t)).

        sum: a variational bound (math.md §5), one time an anchor. Added up over a block and averaged over draws it is
        no less than −log of the block under the same network as a denoiser in many small ancestral steps, told where
        the document ends. It is no bound on q. One on q at one step would be E_z −log p_{1→0}(x | z), but it has no
        limit: the better the map, the more of p(· | z) lies on a single block. Behind a document's end states are
        noise without a code.
        """
        if rng is None:
            raise ValueError(f"{self.name}: the loss is a mean over times and noise: nll needs rng")
        weights = row_weights(targets, mask, weights)[:, 1:]
        given, tokens = self.given(ctx, targets[:, 0]), targets[:, 1:].masked_fill(~mask[:, 1:], -1)
        loss = self._loss(given, tokens, weights, rng)
        rows = torch.arange(len(tokens), device=tokens.device)
        if self.training:
            rows = rows[rng.uniform("scored", len(rows)).to(rows.device) < self.scored]
        nll = self._bound(given[rows], tokens[rows], rows_of(rng, rows)).float()
        return block_nll(loss, nll, mask[rows])

    def _loss(self, given: Given, tokens: Tensor, weights: Tensor, rng: Rng) -> Tensor:
        x, local = self.objective.noised(self.map, TokenStates(tokens, given), rng, 0)
        x_t = torch.where(expand(local, x.x_t), x.x_t, x.x_t.detach())  # codes learn on the diagonal alone
        features = self.map.features(x_t, x.t, x.s, given)
        near, far = (torch.nonzero(rows)[:, 0] for rows in (local, ~local))
        inputs, told = features[near].flatten(0, 1), tokens[near].clamp_min(0).flatten()
        loss, _ = weighted_nll([inputs], [given.unembedding], told, weights[near].flatten(), given.bias)
        if len(far):
            loss = loss + (weights[far] * self.map.divergence(features[far], x[far], self.objective.t_min)).sum()
        return loss

    @torch.no_grad()
    def _bound(self, given: Given, tokens: Tensor, rng: Rng) -> Tensor:
        """(N, M) nats whose sum over M is the bound; anything where there is no token."""
        path, x_0 = self.map.path, self.map.codebook.encode(tokens)
        t, weight = (part.to(x_0) for part in self.bound.draw(path, rng, len(tokens)))
        x_t = path.noise(x_0, path.draw_noise(rng, "bound", x_0), t)
        g = self.map.expected(self.map.features(x_t, t, t, given), given)
        least = torch.full_like(t, self.bound.t_min)
        x_least = path.noise(x_0, path.draw_noise(rng, "bound, least", x_0), least)
        reading = self.map.nll(self.map.features(x_least, least, least, given), given, tokens)
        return weight[:, None] * (x_0 - g).square().sum(-1) + reading

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None) -> Draft:
        """A shorter block is the beginning of a whole one. With noise given, z is expanded by Philox from a digest of
        its bits, those of the tokens' own uniforms among them: z and the draws from p(· | z) are as independent as
        Philox's words are of their addresses, but z has 2^(24(K−1)) values and no more. A mean over noise is as exact
        as over so many draws, 1e-4 of a probability at K = 2."""
        size = self.size(block_size)
        uniform, first_logits = self.uniforms(ctx, rng, noise, size), ctx.first_logits()
        first, log_first = first_token(first_logits, warp, uniform[:, 0], first)
        given = self.given(ctx, first)
        z = self._noise(len(first), rng if rng is not None and noise is None else _expanded(uniform))
        logits = self.map.read(self._last(z, given), given)[:, : size - 1]
        rest, log_rest = warp.draw(logits, uniform[:, 1:])
        tokens, log_q = torch.cat([first[:, None], rest], 1), torch.cat([log_first[:, None], log_rest], 1)
        return Draft(tokens, log_q, [first_logits, *logits.unbind(1)], warp)

    @torch.no_grad()
    def estimate_prefixes(self, ctx: BlockContext, x: Tensor, rng: Rng, draws: int) -> Estimate:
        """At `steps`, from `draws` of z for each row:

        log p(x_1 | h) + log 1/draws Σ_z Π_{j=2}^k p_{1/n→0}(X_{1→1/n}(z))[x_j]
        """
        rows, draw = every_draw(len(x), draws, x.device)
        tokens = nn.functional.pad(x[:, 1:], (0, self.block_size - x.shape[1]), value=-1)
        given, size = self.given(ctx, x[:, 0]), self.map.rows_at_once(self.block_size - 1)
        nll = []
        for row, n in zip(rows.split(size), draw.split(size), strict=True):
            features = self._last(self._noise(len(row), rows_of(rng, row, n)), given[row])
            nll.append(self.map.nll(features, given, tokens[row])[:, : x.shape[1] - 1])
        rest = Estimate.of(-torch.cat(nll).double().view(len(x), draws, -1).cumsum(2))
        first = row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)[:, None]
        return Estimate(nn.functional.pad(rest.log_prob, (1, 0)) - first, nn.functional.pad(rest.stderr, (1, 0)))

    def _noise(self, count: int, rng: Rng) -> Tensor:
        like = self.map.codebook.weight
        shape = count, self.block_size - 1, self.map.codebook.state_size
        return rng.normal("z", *shape, dtype=torch.promote_types(like.dtype, torch.float32)).to(like.device)

    def _last(self, z: Tensor, given: Given) -> Tensor:
        """What the last softmax reads, at X_{1→1/n}(z): (N, M, d)."""
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: a block takes 1 at least")
        x, t = z, z.new_ones(len(z))
        for left in range(self.steps - 1, 0, -1):
            s = torch.full_like(t, left / self.steps)
            x, t = self.map.step(x, t, s, given), s
        return self.map.features(x, t, torch.zeros_like(t), given)


def _expanded(noise: Tensor) -> Rng:
    """Randomness addressed by the bits of noise: uniforms (N, K), or Gumbels (N, K, V), of which one a place is read."""
    bits = (noise if noise.ndim == 2 else noise[..., 0]).float().contiguous().view(torch.int32).long()
    address = torch.zeros_like(bits[:, 0])
    for place in bits.unbind(1):
        address = address * 6364136223846793005 + place  # modulo 2^64, by Knuth's multiplier
    return Rng(0xF10D, address, address)
