"""Frozen codes from any encoder: what a transformers model makes of each token, in d dimensions, as long as the noise.

    c_v = √d·Pᵀ(h_v − mean h)/‖·‖

h_v: the row of its input embedding or the last hidden state at the token read alone; P: the d directions of largest variance
over the vocabulary (PCA). Of a vocabulary that is not the encoder's own h_v is the mean over the pieces of the token's text.
"""

from typing import Any, Literal

import torch
from torch import Tensor

States = Literal["input", "hidden"]


@torch.no_grad()
def encoder_codes(name: str, tokenizer: Any, state_size: int, states: States = "input") -> Tensor:
    """(V, d), fp32. name: of a model with its tokenizer, or their folder. tokenizer: whose V tokens are to have codes."""
    from transformers import AutoModel, AutoTokenizer

    try:
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
        own = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder {name} did not load: {str(error).strip().splitlines()[0]}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    pieces, same = pieces_of(tokenizer, own)
    rows = model.get_input_embeddings().weight
    if (most := max(max(part) for part in pieces)) >= len(rows):
        raise ValueError(f"encoder {name} has {len(rows)} tokens and no token {most}: it is not of this tokenizer")
    if not 0 < state_size <= rows.shape[1]:
        raise ValueError(
            f"state_size {state_size}: the encoder's states have {rows.shape[1]} dimensions to choose from"
        )
    codes = principal(read(model, pieces, states), state_size)
    codes = state_size**0.5 * torch.nn.functional.normalize(codes, dim=-1).float()
    if not same and (alike := len(codes) - len(codes.unique(dim=0))):
        raise ValueError(
            f"{alike} tokens read the same to encoder {name}: use its own (tokenizer.kind pretrained, tokenizer.name {name})"
        )
    return codes


def pieces_of(tokenizer: Any, own: Any) -> tuple[list[list[int]], bool]:
    """The encoder's tokens of every token, and whether both vocabularies are one."""
    if own.get_vocab() == tokenizer.get_vocab():
        return [[v] for v in range(len(tokenizer))], True
    texts = [tokenizer.decode([v]) for v in range(len(tokenizer))]
    unknown = own.unk_token_id if own.unk_token_id is not None else 0
    return [own.encode(text, add_special_tokens=False) or [unknown] for text in texts], False


def principal(vectors: Tensor, size: int) -> Tensor:
    """(V, h) → (V, size), centred, along the directions of largest variance, the largest first."""
    mean, directions = principal_directions(vectors, size)
    return (vectors.double() - mean) @ directions


def principal_directions(vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The mean, (h,), and orthonormal directions, (h, size), float64."""
    centred = vectors.double() - vectors.double().mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    directions = directions.flip(1)[:, :size]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return vectors.double().mean(0), directions * largest.sign()


def read(model: Any, pieces: list[list[int]], states: States, rows: int = 512) -> Tensor:
    """(V, h): the mean over each list's tokens, lists of one length at once."""
    table = model.get_input_embeddings().weight
    vectors = torch.empty(len(pieces), table.shape[1])
    lengths = torch.tensor([len(part) for part in pieces])
    for length in lengths.unique().tolist():
        for which in (lengths == length).nonzero()[:, 0].split(rows):
            ids = torch.tensor([pieces[v] for v in which.tolist()])
            found = table[ids] if states == "input" else model(input_ids=ids).last_hidden_state
            vectors[which] = found.mean(1).float()
    return vectors
