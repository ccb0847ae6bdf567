"""smiles-N: strings of N symbols that RDKit reads as molecules, uniform. An extra: pip install 'leaplm[chem]'."""

from functools import cache
from itertools import product

from eval.validity.suites import Suite, register

SYMBOLS = ("C", "N", "O", "=", "(", ")", "1")


@register("smiles", (6,))
@cache
def smiles(n: int) -> Suite:
    """A bracket or a ring opened must be closed further on, and valences must fit: nothing local."""
    if not 2 <= n <= 7:
        raise ValueError(f"smiles-{n}: the size must lie between 2 and 7")
    words = (" ".join(word) for word in product(SYMBOLS, repeat=n) if is_molecule("".join(word)))
    texts = list(words)
    return Suite(f"smiles-{n}", {"the molecule is": dict.fromkeys(texts, 1 / len(texts))})


def is_molecule(text: str) -> bool:
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ValueError("smiles suites need RDKit: pip install 'leaplm[chem]'") from error
    rdBase.DisableLog("rdApp.*")
    if text[0] in "=()1" or text.count("(") != text.count(")") or text.count("1") % 2:
        return False  # most strings end here, a hundred times faster than by parsing
    return Chem.MolFromSmiles(text) is not None
