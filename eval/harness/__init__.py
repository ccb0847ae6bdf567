"""The lm-evaluation-harness on our models: `leaplm lm-eval run --model leaplm-mtp --model_args pretrained=RUN --tasks …`.

Without the command line, importing `eval.harness.mtp` or `eval.harness.flow` registers the model with lm-eval.
"""
