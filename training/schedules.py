"""Learning rates as pure functions of the step."""

import math

from training.config import OptimizerConfig


def learning_rate(step: int, total: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then cosine, linear or no decay to min_lr_ratio · lr at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, total - config.warmup)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[config.decay]
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
