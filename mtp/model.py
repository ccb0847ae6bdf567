"""Trunk plus joint head as one transformers model: `from_pretrained`, `save_pretrained`, Auto classes.

The trunk is any transformers causal LM whose logits are a linear map of its last hidden state.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from mtp.heads import build_head, family
from mtp.heads.base import BlockContext, JointHead


class MTPConfig(PreTrainedConfig):
    """trunk_config: a causal LM's config (or its dict); head: a family's name, or None for the trunk
    alone (then block_size is 1); head_options: that family's keyword arguments."""

    model_type = "leaplm-mtp"
    sub_configs: ClassVar[dict[str, Any]] = {"trunk_config": AutoConfig}

    trunk_config: dict[str, Any] | PreTrainedConfig | None = None
    head: str | None = None
    block_size: int = 1
    head_options: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.trunk_config, dict):
            fields = dict(self.trunk_config)
            self.trunk_config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
        super().__post_init__(**kwargs)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # what generation falls back to
            if getattr(self, name, None) is None:
                setattr(self, name, getattr(self.trunk_config, name, None))


class MTPForCausalLM(PreTrainedModel, GenerationMixin):
    """forward is the trunk's; `states` and `context` are what decoders and objectives use; `generate` is
    transformers' own, with several tokens a pass."""

    config_class = MTPConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MTPConfig, trunk: Any = None) -> None:
        super().__init__(config)
        check_logit_settings(config.trunk_config)
        if trunk is None:
            trunk = AutoModelForCausalLM.from_config(config.trunk_config)
        self.trunk: Any = trunk
        self.head: JointHead | None = None
        if config.head is not None:
            embedding = trunk.get_input_embeddings().weight
            vocab_size, hidden_size = trunk.get_output_embeddings().weight.shape
            self.head = build_head(
                config.head,
                hidden_size=hidden_size,
                embedding_size=embedding.shape[1],
                vocab_size=vocab_size,
                block_size=config.block_size,
                **(config.head_options or {}),
            )
        self.generation_config = trunk.generation_config
        self.post_init()

    @classmethod
    def from_trunk(
        cls, trunk: PreTrainedModel, head: str | None = None, block_size: int = 1, **head_options: Any
    ) -> "MTPForCausalLM":
        """Attach a fresh head to a causal LM; its weights are shared, not copied."""
        check_trunk(trunk)
        if head is not None:
            head_options = {**family(head).trunk_options(trunk.config), **head_options}
        config = MTPConfig(  # type: ignore[call-arg]  # the base class takes more than its fields
            trunk_config=trunk.config,
            head=head,
            block_size=block_size if head else 1,
            head_options=head_options,
            # a config sets its parts' backend too, so without this the trunk would lose its own
            attn_implementation=trunk.config._attn_implementation,
        )
        return cls(config, trunk)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Heads and trunks initialise themselves."""

    def get_input_embeddings(self):
        return self.trunk.get_input_embeddings()

    def get_output_embeddings(self):
        return self.trunk.get_output_embeddings()

    def states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """input_ids: (batch, length) → the trunk's states after its last norm, (batch, length, d), and cache."""
        out = self.trunk.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return out.last_hidden_state, out.past_key_values if use_cache else None

    def context(self, hidden: Tensor, past: Any = None) -> BlockContext:
        """hidden: (N, d) → what a head may look at. past: a `heads.past.Past`, for heads that read more than a state."""
        unembedding = self.trunk.get_output_embeddings()
        return BlockContext(
            hidden, self.trunk.get_input_embeddings().weight, unembedding.weight, unembedding.bias, past
        )

    def anchored(self, hidden: Tensor, tokens: Tensor, anchors: Tensor, own_block: bool = True) -> BlockContext:
        """The context of blocks of text. hidden: (batch, length, d), the states of tokens (batch, ≥ length); anchors:
        (batch, length) bool. own_block: the blocks asked about are the text's own tokens past each anchor."""
        if self.head is None or not (self.head.needs_past or self.head.learns_past):
            return self.context(hidden[anchors])
        from mtp.heads.past import Past

        return self.context(hidden[anchors], Past.of_windows(hidden, tokens, anchors, own_block))

    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        verify: str | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> Any:
        """transformers' `generate`; verify: a rule of `decoding.speculative`, default "token", or "none" for direct
        decoding, the default of a model without a head. See `generation.joint_generate`."""
        from mtp.generation import joint_generate

        if options.get("custom_generate") is None:
            if options.get("assistant_model") is not None:
                raise ValueError("the head drafts here: generate takes no assistant_model")
            verify = verify or ("token" if self.head is not None else "none")
            # decoders keep their own cache
            options |= {"custom_generate": joint_generate, "use_cache": False, "verify": verify, "stream": streamer}
        return super().generate(inputs, generation_config, **options)  # type: ignore[misc]

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """The trunk's own forward: next-token logits, loss with labels, KV cache."""
        return self.trunk(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def check_logit_settings(config: Any) -> None:
    """Settings that bend or scale logits, which at small logits the numbers alone would not show."""
    for name, neutral in (
        ("final_logit_softcapping", None),
        ("logit_scale", 1),
        ("logits_scaling", 1),
        ("lm_head_multiplier", 1),
    ):
        value = getattr(config, name, neutral)
        if value not in (neutral, None):
            raise ValueError(f"the trunk sets {name} = {value}: joint heads need logits that are W·h exactly")


@torch.no_grad()
def check_trunk(trunk: Any) -> None:
    """States that see only the past, and logits that are W·h: what every head takes for granted."""
    parameter = next(trunk.parameters())
    if parameter.is_meta:
        return
    unembedding = trunk.get_output_embeddings()
    if unembedding is None or not hasattr(trunk, "base_model"):
        raise ValueError(f"{type(trunk).__name__} is no causal language model with an output embedding")
    was_training = trunk.training
    trunk.eval()
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=parameter.device) % unembedding.weight.shape[0]
    hidden = trunk.base_model(input_ids=ids).last_hidden_state
    logits = trunk(input_ids=ids).logits
    trunk.train(was_training)
    tolerance = 1e-3 if parameter.dtype == torch.float32 else 5e-2
    # the same products on the same shapes: a causal trunk's earlier states are equal to the last digits
    if not torch.allclose(hidden[0, :3], hidden[1, :3], atol=tolerance / 100 * float(hidden.abs().max())):
        raise ValueError(f"{type(trunk).__name__} sees later tokens: a trunk must be causal")
    if not torch.allclose(unembedding(hidden), logits, atol=tolerance * float(logits.abs().max())):
        raise ValueError(f"{type(trunk).__name__} does not give W·h as its logits, which joint heads read")


AutoConfig.register(MTPConfig.model_type, MTPConfig, exist_ok=True)
AutoModelForCausalLM.register(MTPConfig, MTPForCausalLM, exist_ok=True)
