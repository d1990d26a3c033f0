"""ROAR, RemOve And Retrain: is a feature-importance estimator any good? (Hooker et al., NeurIPS 2019)

Six subpackages ("rooms"), each importing only from those named before it: study (what a study is and leaves behind),
data (images), engine (the GPU code: explain, rank, remove, retrain), answers (numbers from tables), grid (running a
study), views (looking at it). `cli` and `explore` are the front ends for terminal and notebook. The docstring of each
room says in which order to read its modules.
"""
