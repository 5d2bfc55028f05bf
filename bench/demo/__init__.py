"""Character models on text that every Python carries: the demo, in pieces that other benchmarks reuse."""
