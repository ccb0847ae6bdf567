"""From documents to global batches: sources, tokenizers, a memory-mapped store, windows."""
