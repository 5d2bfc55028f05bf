"""`holdfast tune`: which problems, and one after the other within a number of seconds."""
