"""Numbers from tables of results: NumPy, pandas and SciPy only; nothing here trains, draws or loads torch.

Read in this order: stats (means, intervals, areas), spreads (moderated t tests), verdicts (better or worse than
Random?), looks (seeds where they are needed), across (several studies), trust (do findings survive other questions?),
patterns (clumps and lattices of rankings), resolution (does a metric see a known order?), paper (the published numbers
and the toy problem).
"""
