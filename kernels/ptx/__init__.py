"""Compiled kernels without a GPU: an executor of the PTX that goes to ptxas."""
