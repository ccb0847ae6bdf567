"""Objectives: one method a file, all with the signature of `base.Objective`."""
