"""How the benchmark measures: cases and their numbers, what is right, clocks, floors, and the table of results."""
