"""ROAR, RemOve And Retrain: is a feature-importance estimator any good? (Hooker et al., NeurIPS 2019)

Six rooms, each of which imports only those above it: study (what a study is and leaves behind), data (images), engine
(the GPU code: explain, rank, remove, retrain), answers (numbers from tables), grid (running it), views (looking at it).
`cli` and `explore` are the two faces, terminal and notebook. Each room says in which order to read it.
"""
