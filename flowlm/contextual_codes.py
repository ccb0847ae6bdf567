"""Codes of a window from a frozen encoder: what a token's state is depends on all the others (ELF, 2605.10938).

    c = Pᵀ(h − μ)/σ,   h = encoder(x), (B, N, width)

μ, P: mean and the d directions of largest variance of h over training windows; σ: one number, so that codes have unit variance
on average, as the noise. What is known alone (a prompt) is encoded without the rest, which must not show in it. There is no
table of codes: nothing is nearest, Cᵀp has no meaning, and neither has what is made of them (a matched filter, a bound).
"""

from typing import Any

import torch
from torch import Tensor

from flowlm.encoder_codes import principal_directions
from flowmap.codebook import Codebook, in_full


class ContextualCodes(Codebook):
    """encoder: transformers' model without a head, or one of our masked diffusion models; frozen, and saved along."""

    mean: Tensor
    directions: Tensor

    def __init__(self, encoder: Any, size: int, state_size: int) -> None:
        super().__init__(size, state_size)
        width = hidden_size(encoder)
        if state_size > width:
            raise ValueError(f"state_size {state_size}: the encoder's states have {width} dimensions to choose from")
        self.encoder = encoder.requires_grad_(False).eval()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("directions", torch.zeros(width, state_size))

    def train(self, mode: bool = True) -> "ContextualCodes":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """tokens: (B, N), windows that are trained on."""
        seen = torch.cat([self.read(part).flatten(0, 1).double() for part in tokens.split(64)])
        mean, directions = principal_directions(seen, self.state_size)
        variance = ((seen - mean) @ directions).square().mean()
        if not variance > 0:
            raise ValueError("the encoder makes the same of every token: it has learned nothing to be written in")
        self.mean.copy_(mean)
        self.directions.copy_(directions / variance.sqrt())

    def read(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """h. at: (B, N) bool, tokens that are known; None: all."""
        if hasattr(self.encoder, "map"):
            return self.encoder.map.features(tokens, at)
        return self.encoder(input_ids=tokens, attention_mask=None if at is None else at.long()).last_hidden_state

    @torch.no_grad()
    def encode(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """(B, N) → (B, N, d); where at is False, what stands there means nothing."""
        with torch.autocast(tokens.device.type, enabled=False):
            return in_full((self.read(tokens, at) - self.mean) @ self.directions)

    def codes(self) -> Tensor:
        raise ValueError("codes of a contextual encoder depend on the whole window: there is no table of them")

    def expected(self, logits: Tensor) -> Tensor:
        return self.codes()

    def decode(self, states: Tensor) -> Tensor:
        return self.codes()

    def prior_logits(self, x_t, alpha, sigma, noise_scale=1.0, log_prior=None):
        return self.codes()


def hidden_size(encoder: Any) -> int:
    return encoder.map.network.config.width if hasattr(encoder, "map") else encoder.config.hidden_size


def build_encoder(config: dict[str, Any]) -> Any:
    """From what its configuration was saved as, without its weights. Of a model with a decoder, its encoder."""
    from transformers import AutoConfig, AutoModel

    import flowlm.discrete.model  # noqa: F401  # registers ours

    fields = {**config}
    model: Any = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
