"""`holdfast check`: are the kernels right? Also what the tests of the kernels compare with."""
