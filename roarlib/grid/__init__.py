"""Running a study: its cells, one notebook execution each, here or on a cluster, whatever interrupts it.

Read in this order: cells (the grid, and what is done), runner (executes it), cluster (where), kernel (how a notebook is
executed), preflight (checks and costs before a run), rehearsal (the run on a few images), status (its progress).
"""
