"""Likelihoods of anything that offers logits of (x_t, t): which number is a bound, which an estimate, and how sure each is.

    curve = measure(model, training, rng)               on training text: clocks and grids know nothing of what is scored
    vlb(model, states, rng, fit_clock(model, training, rng, curve))
    k_step(model, states, rng, fit_grid(curve, 8))
    ode(model, states, rng, snr=fit_clock(model, training, rng, curve).end)
    enumerated(FewStep(model, 2), answers, seed=0)      importance(FewStep(model, 2), states, rng, inflation, snr)
    k_step(FromZero(model), states, rng, torch.zeros(1))                a network that is shown nothing: exact

Where states stand in blocks, with a level each (`data.flow_windows`), every estimator is a sum over blocks behind clean text.

docs/likelihood.md says what each means and what may be compared with what.
"""

from flowlm.likelihood.clock import Clock
from flowlm.likelihood.curve import Curve, fit_clock, measure
from flowlm.likelihood.denoiser import Denoiser, FromLogits, FromZero
from flowlm.likelihood.enumerated import enumerated
from flowlm.likelihood.importance import fit_inflation, importance
from flowlm.likelihood.k_step import fit_grid, k_step
from flowlm.likelihood.laws import Ancestral, FewStep, Law
from flowlm.likelihood.ode import ode
from flowlm.likelihood.score import Score, total_probability
from flowlm.likelihood.vlb import vlb

__all__ = [
    "Ancestral", "Clock", "Curve", "Denoiser", "FewStep", "FromLogits", "FromZero", "Law", "Score", "enumerated", "fit_clock", "fit_grid",
    "fit_inflation", "importance", "k_step", "measure", "ode", "total_probability", "vlb",
]  # fmt: skip
