"""lm-eval tasks: our suites, and public sets read from plain files under LEAPLM_DATA."""
