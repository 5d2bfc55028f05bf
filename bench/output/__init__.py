"""Everything that is written out: tables, pictures, LaTeX, the compile report, the atlas, comparisons, plans."""
