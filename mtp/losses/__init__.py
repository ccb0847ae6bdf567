"""Likelihoods of a wide softmax that never hold all of its logits at once."""
