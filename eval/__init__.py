"""Measuring: joint validity, likelihood, reports. Every number as a flat record with its contract."""
