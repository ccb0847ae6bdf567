"""The image core: data sets as arrays, their scaling to model space, step-addressed batches."""
