"""What an objective trains: a flow language model, or one of its baselines on the same backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flowlm.discrete.causal import Autoregressive
from flowlm.discrete.masked import MaskedDiffusion
from flowlm.discrete.model import (
    AutoregressiveConfig,
    AutoregressiveLM,
    MaskedDiffusionConfig,
    MaskedDiffusionLM,
)
from flowlm.model import FlowLM, FlowLMConfig
from flowmap.objectives import Objective
from flowmap.objectives.tokens import TOKEN_OBJECTIVES, AncestralBound
from flowmap.objectives.tokens.decoded import DecodedEndpoint

if TYPE_CHECKING:  # its fields alone are read
    from training.map_fields import FlowConfig

BACKBONE = ("width", "depth", "heads", "positions", "time_scale", "use_s", "attention")
CLOCKS = ("running", "gumbel", "learned")
"""Laws of time that learn."""
FIXED = ("one-hot", "bits", "table", "contextual")
"""Codebooks that nothing learns."""
OBJECTIVES: dict[str, type[Objective]] = {
    **TOKEN_OBJECTIVES, "decoded": DecodedEndpoint, "autoregressive": Autoregressive, "masked": MaskedDiffusion,
}  # fmt: skip


def make_model(plan: FlowConfig, objective: Objective, **common: Any) -> Any:
    """common: vocabulary, length and special tokens."""
    common |= {
        "codebook": plan.codebook, "state_size": plan.state_size,
        "backbone": {name: getattr(plan, name) for name in BACKBONE},
    }  # fmt: skip
    return MAKERS.get(plan.objective, _flow)(plan, objective, common)


def _flow(plan: FlowConfig, objective: Any, common: dict[str, Any]) -> FlowLM:
    own: dict[str, Any] = {
        name: getattr(objective, name, none) for name, none in (("t_min", 1e-3), ("self_conditioning", 0.0))
    }
    own |= {"block_lengths": plan.block_lengths or None, "noise": plan.noise, "causal": plan.causal}
    own |= {name: getattr(objective, name, none) for name, none in (("carries", False), ("memory", 0), ("jumps", 1))}
    if own["carries"] and (plan.noise == "token" or plan.decoder == "contextual"):
        raise ValueError(
            "flow.options carry is of tokens that move together and are drawn from the softmax: leave it out"
        )
    own["rounding"] = {"depth": plan.decoder_depth} if plan.decoder == "contextual" else None
    own |= {"noise_scale": plan.noise_scale, "prompt_dropout": plan.prompt_dropout}
    if (plan.codebook == "contextual") != isinstance(objective, DecodedEndpoint):
        raise ValueError(
            "flow.codebook contextual and flow.objective decoded go together: other losses look codes up in a table"
        )
    model = FlowLM(FlowLMConfig(path=plan.path, prior=plan.prior, **own, **common))
    objective.check_path(model.map.path)
    if denoises_alone(objective):
        model.generation_config.sampler = "ddim"  # type: ignore[attr-defined]
    if isinstance(objective, AncestralBound):
        model.generation_config.sampler = "ancestral"  # type: ignore[attr-defined]  # the steps that it is trained to make
        model.generation_config.num_steps = 1 + max(objective.counts)  # type: ignore[attr-defined]
    if getattr(objective, "jumps", 1) > 1:
        model.generation_config.grid = "closing"  # type: ignore[attr-defined]  # the jumps that it was taught
    return model


def denoises_alone(objective: Any) -> bool:
    """Whether its map has never been told a time it lands at, so that jumps are no way to write with it."""
    return getattr(objective, "diagonal", 1.0) == 1.0 and not isinstance(objective, AncestralBound)


def _autoregressive(plan: FlowConfig, objective: Any, common: dict[str, Any]) -> AutoregressiveLM:
    _refuse_paths(plan)
    if plan.block_lengths:
        raise ValueError("flow.block_lengths are of flows and of masked diffusion: leave them out of autoregressive")
    return AutoregressiveLM(AutoregressiveConfig(**common))


def _masked(plan: FlowConfig, objective: Any, common: dict[str, Any]) -> MaskedDiffusionLM:
    _refuse_paths(plan)
    own = {"time_conditioning": objective.time_conditioning, "block_lengths": plan.block_lengths or None}
    return MaskedDiffusionLM(MaskedDiffusionConfig(**own, **common))  # type: ignore[call-arg]


def check_noise(plan: FlowConfig, objective: Objective) -> None:
    """Whether the objective holds where parts of a sample have times of their own."""
    if plan.noise == "token" and not objective.each_token:
        fit = [name for name, kind in OBJECTIVES.items() if kind.each_token]
        raise ValueError(
            f"flow.noise token: {plan.objective} needs one time for all that see each other; {', '.join(fit)} do not"
        )
    if plan.noise != "sample" and plan.options.get("times") in CLOCKS:
        raise ValueError(f"flow.noise {plan.noise}: times {plan.options['times']} are learned from whole samples")


def hold_codes(plan: FlowConfig, model: Any) -> None:
    if not plan.learn_codes:
        if plan.codebook in FIXED:
            raise ValueError(f"flow.learn_codes: codes of {plan.codebook} are never learned, leave it out")
        model.map.codebook.requires_grad_(False)


def _refuse_paths(plan: FlowConfig) -> None:
    if plan.noise == "token" or plan.causal or (plan.noise == "block") != bool(plan.block_lengths):
        raise ValueError(
            f"{plan.objective} has blocks with a time each, flow.block_lengths and flow.noise block together, or none; "
            "flow.causal is of flows"
        )
    if plan.codebook in ("sphere", "table", "contextual"):
        raise ValueError(f"flow.codebook {plan.codebook} is of flows: {plan.objective} has one-hot, embedding and bits")
    if plan.prompt_dropout:
        raise ValueError(f"flow.prompt_dropout is for the guidance of flows, {plan.objective} has none: leave it out")
    if plan.decoder != "softmax":
        raise ValueError(
            f"flow.decoder {plan.decoder} reads the states of flows: {plan.objective} has tokens, leave it out"
        )
    if plan.prior or plan.path != "linear" or plan.noise_scale != 1:
        raise ValueError(
            f"flow.prior and flow.path are of states with noise: {plan.objective} has tokens, leave them out"
        )


MAKERS: dict[str, Callable[[FlowConfig, Any, dict[str, Any]], Any]] = {
    "autoregressive": _autoregressive, "masked": _masked,
}  # fmt: skip
"""By the objective's name; all others train a flow."""
