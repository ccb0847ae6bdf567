"""Sequential modules (DeepSeek-V3, 2412.19437 §2.2): one transformer layer for each further token, over the whole text.

    h^k_i = M_k[ RMSNorm(E x_{i+k}) ; RMSNorm(h^{k−1}_i) ],   h^0 the trunk's states,   q_{k+1} = softmax(W h^k_i)

M_k projects the pair to width d, passes it through a decoder layer that is causal over places, and norms it. At place j
it reads token x_{j+k}, so that the law of a block's token k + 1 has seen x_1..x_k and no more. The layers are those of a
Llama model and the names those of transformers' `MtpLayer`, so that a trained head can be handed to it.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtp.heads.base import BlockContext, BlockNLL, Draft, JointHead, block_nll, first_token, row_weights
from mtp.heads.past import Past
from mtp.heads.rotary import rotary
from mtp.losses.linear_nll import row_nll, weighted_nll


class SequentialHead(JointHead):
    """The head with modules 1..K−1; needs `BlockContext.past`."""

    name = "sequential"
    needs_past: ClassVar[bool] = True

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        block_size: int,
        *,
        embedding_size: int | None = None,
        num_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
        rope_theta: float = 10000.0,
        eps: float = 1e-6,
    ) -> None:
        """num_heads, num_key_value_heads, intermediate_size: of the layers, default hidden_size / 64, num_heads, 3 hidden_size."""
        super().__init__(hidden_size, vocab_size, block_size)
        from transformers import LlamaConfig

        if embedding_size not in (None, hidden_size):
            raise ValueError(f"{self.name}: embeddings of width {embedding_size} do not fit states of {hidden_size}")
        num_heads = num_heads or max(1, hidden_size // 64)
        if hidden_size % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the trunk's width {hidden_size}")
        config = LlamaConfig(  # type: ignore[call-arg]
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size or 3 * hidden_size,
            num_attention_heads=num_heads,
            num_key_value_heads=num_key_value_heads or num_heads,
            num_hidden_layers=block_size - 1,
            rms_norm_eps=eps,
            rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
            attn_implementation="sdpa",
        )
        self.config = config
        self.head_size, self.rope_theta = hidden_size // num_heads, rope_theta
        self.layers = nn.ModuleList(Module(config, k) for k in range(block_size - 1))

    @classmethod
    def trunk_options(cls, config: Any) -> dict[str, Any]:
        """Layers like the trunk's own."""
        names = {
            "num_heads": "num_attention_heads", "num_key_value_heads": "num_key_value_heads",
            "intermediate_size": "intermediate_size", "eps": "rms_norm_eps",
        }  # fmt: skip
        options = {ours: getattr(config, theirs) for ours, theirs in names.items() if getattr(config, theirs, None)}
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
        return options if theta is None else {**options, "rope_theta": theta}

    def nll(self, ctx, targets, mask, weights=None, rng=None) -> BlockNLL:
        weights = row_weights(targets, mask, weights)[:, 1:]
        states = self._states(ctx, targets[:, :-1])
        loss, nll = weighted_nll(
            [states.flatten(0, 1)], [ctx.unembedding], targets[:, 1:].flatten(), weights.flatten(), ctx.bias
        )
        return block_nll(loss, nll.view(weights.shape), mask)

    def log_prob(self, ctx, x):
        nll = row_nll([ctx.hidden], [ctx.unembedding], x[:, 0].contiguous(), ctx.bias)[:, None]
        if x.shape[1] > 1:
            states = self._states(ctx, x[:, :-1]).flatten(0, 1)
            rest = row_nll([states], [ctx.unembedding], x[:, 1:].flatten(), ctx.bias)
            nll = torch.cat([nll, rest.view(len(x), -1)], 1)
        return -nll

    def law(self, ctx, x):
        logits = nn.functional.linear(self._states(ctx, x[:, :-1]), ctx.unembedding, ctx.bias)
        return logits.float().log_softmax(-1)

    def ready(self, ctx, x):
        """The text's own blocks share a pass over the windows, which every part of the anchors would make anew."""
        past = self.past_of(ctx)
        return replace(ctx, past=replace(past, states=self._states(ctx, x[:, :-1]))) if past.text else ctx

    def _states(self, ctx: BlockContext, x: Tensor) -> Tensor:
        """x: x_1..x_M of every anchor, (N, M) → h^1..h^M there, (N, M, d)."""
        past = self.past_of(ctx)
        if past.states is not None:
            return past.states
        past = past if past.text or not len(x) else past.alone(x)
        length = past.hidden.shape[1]
        tokens = nn.functional.pad(past.tokens, (0, max(0, length + x.shape[1] - past.tokens.shape[1])))
        places = torch.arange(length, device=x.device)[None]
        hidden, made = past.hidden, []
        for k, layer in enumerate(self.layers[: x.shape[1]], 1):
            hidden = layer(self._embed(ctx, tokens[:, k : k + length]), hidden, self._rotary(hidden, places))
            made.append(past.pick(hidden))
        return torch.stack(made, 1)

    def sample(self, ctx, warp, rng=None, noise=None, block_size=None, first=None) -> Draft:
        """Module by module, each over the places whose tokens are new: all of them without a cache."""
        size = self.size(block_size)
        uniform, past = self.uniforms(ctx, rng, noise, size), self.past_of(ctx)
        logits = [ctx.first_logits()]
        token, told = first_token(logits[0], warp, uniform[:, 0], first)
        drawn, log_q = [token], [told]
        hidden, tokens, places, mask, at = self._recent(past)
        for k, layer in enumerate(self.layers[: size - 1], 1):
            tokens = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1).scatter(1, at[:, None], drawn[-1][:, None])
            hidden = layer(self._embed(ctx, tokens), hidden, self._rotary(hidden, places), mask, past.cache)
            state = hidden.gather(1, at[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
            logits.append(nn.functional.linear(state, ctx.unembedding, ctx.bias))
            token, told = warp.draw(logits[-1], uniform[:, k])
            drawn.append(token)
            log_q.append(told)
        return Draft(torch.stack(drawn, 1), torch.stack(log_q, 1), logits, warp)

    def _recent(self, past: Past) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Places to pass through the modules: their trunk states (N, C, d), tokens (N, C), numbers (N or 1, C), who may
        see whom (None: causal), and which of the C is the anchor (N,)."""
        if past.cache is None:
            length = past.hidden.shape[1]
            places = torch.arange(length, device=past.place.device)[None]
            return past.hidden[past.row], past.tokens[past.row, :length], places, None, past.place
        places, mask = past.cache.open(past.recent, past.reach)
        hidden = past.hidden.gather(1, places[..., None].expand(-1, -1, past.hidden.shape[-1]))
        return hidden, past.tokens.gather(1, places), places, mask, past.place - places[:, 0]

    def _rotary(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.to(hidden.dtype) for part in rotary(places, self.head_size, self.rope_theta))

    def _embed(self, ctx: BlockContext, tokens: Tensor) -> Tensor:
        return nn.functional.embedding(tokens, ctx.embedding)


class Module(nn.Module):
    """M_k. At the start it hands the normed states on: the next token's law again."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        width = config.hidden_size
        self.enorm, self.hnorm, self.post_norm = (nn.RMSNorm(width, config.rms_norm_eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.mtp_block = LlamaDecoderLayer(config, index)
        with torch.no_grad():
            self.eh_proj.weight.copy_(torch.cat([torch.zeros(width, width), torch.eye(width)], 1))
            self.mtp_block.self_attn.o_proj.weight.zero_()
            self.mtp_block.mlp.down_proj.weight.zero_()

    def forward(
        self, embedded: Tensor, hidden: Tensor, rotary: Any, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """embedded, hidden: (B, C, d) → (B, C, d)."""
        pair = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], -1))
        return self.post_norm(
            self.mtp_block(pair, attention_mask=mask, position_embeddings=rotary, past_key_values=cache)
        )
