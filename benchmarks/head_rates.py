"""Learning rates of the heads on text, at the width of trunk S (256): swept, or guessed until they are."""

TUNED = {"independent": 8e-3, "first-order-chain": 8e-3, "recurrent-chain": 8e-3, "block-chain": 4e-3}
"""Each the best of benchmarks.rates or within its flat bottom."""
UNTUNED = {
    "lattice-chain": 8e-3, "gru-chain": 8e-3, "blockwise": 8e-3, "medusa": 2e-3, "mixture": 4e-3,
    "mixture-of-chains": 4e-3, "hidden-markov": 4e-3, "tree": 4e-3, "sequential": 3e-3, "text-chain": 3e-3,
    "text-recurrent-chain": 5e-3, "noise": 4e-3, "flow-map": 2e-3,
}  # fmt: skip
"""Marked as such in the table: the rate of a tuned relative, less where a head is deeper or has tables of its own."""
RATES = TUNED | UNTUNED
BLOCKS = (2, 4, 8)
"""Sizes at which a head trained at the largest is scored."""
