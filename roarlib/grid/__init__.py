"""Running a study: its cells, one notebook execution each, here or on a cluster, through every interruption.

Read in this order: cells (the grid, and what is done), runner (executes it), cluster (where), kernel (how a notebook is
executed), preflight (checks and costs before a run), rehearsal (the run on a few images), status (how far it is).
"""
