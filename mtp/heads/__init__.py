"""Joint heads by name: one family a file, all under the contract of `base.JointHead`."""

import difflib
import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowmap.naming import is_own, own_class

if TYPE_CHECKING:
    from mtp.heads.base import JointHead

_HOMES = {
    "independent": ("mtp.heads.independent", "IndependentHead"),
    "first-order-chain": ("mtp.heads.chains", "FirstOrderChain"),
    "recurrent-chain": ("mtp.heads.chains", "RecurrentChain"),
    "block-chain": ("mtp.heads.block_chain", "BlockChain"),
    "text-recurrent-chain": ("mtp.heads.text_recurrent", "TextRecurrent"),
    "text-chain": ("mtp.heads.text_chain", "TextChain"),
    "lattice-chain": ("mtp.heads.lattice", "LatticeChain"),
    "gru-chain": ("mtp.heads.chains", "GRUChain"),
    "blockwise": ("mtp.heads.independent", "BlockwiseHead"),
    "medusa": ("mtp.heads.medusa", "MedusaHead"),
    "mixture": ("mtp.heads.circuits", "MixtureHead"),
    "mixture-of-chains": ("mtp.heads.circuits", "MixtureOfChains"),
    "hidden-markov": ("mtp.heads.circuits", "HiddenMarkovHead"),
    "tree": ("mtp.heads.circuits", "TreeHead"),
    "sequential": ("mtp.heads.sequential", "SequentialHead"),
    "flow-map": ("mtp.heads.flow_map", "FlowMapHead"),
    "noise": ("mtp.heads.noise", "NoiseHead"),
}
NAMES = tuple(_HOMES)


def option_names(name: str) -> set[str]:
    """The keyword options of a family."""
    parameters = inspect.signature(family(name)).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def build_head(
    name: str, *, hidden_size: int, embedding_size: int, vocab_size: int, block_size: int, **options: Any
) -> "JointHead":
    """A fresh head. Options are the family's own keyword arguments; an unknown one is refused by name."""
    made, known = family(name), option_names(name)
    if "embedding_size" in known:
        options = {"embedding_size": embedding_size, **options}
    unknown = sorted(set(options) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1) or sorted(known)
        raise ValueError(f"head {name!r} has no option {unknown[0]!r}: did you mean {near[0]!r}?")
    return made(hidden_size, vocab_size, block_size, **options)


def family(name: str) -> "type[JointHead]":
    """The class of a head by its name; module:Class is a head of one's own."""
    if is_own(name):
        from mtp.heads.base import JointHead

        return own_class(name, JointHead)
    if name not in _HOMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(NAMES)}"
        raise ValueError(f"unknown head {name!r}: {hint}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
