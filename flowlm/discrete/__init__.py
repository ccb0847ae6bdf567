"""Baselines on the flow language models' own backbone, data and budget: models whose states are the tokens themselves.

autoregressive     P(x) = Π_l p(x^l | x^{<l})                   exact likelihood, a token a pass
masked diffusion   tokens are blanked out, and filled in again   2406.07524: a bound, any number of passes
"""
