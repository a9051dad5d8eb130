"""The Triton kernels, one file an op; `row_stats` is the algebra that they share."""
