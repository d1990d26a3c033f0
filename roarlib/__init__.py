"""ROAR, RemOve And Retrain: is a feature-importance estimator any good? (Hooker et al., NeurIPS 2019)

Read the modules in this order: params, data, textures, models, train, draws, attribute, remove, impute, results, grid,
kernel, stats, plots, explore, report, cli.
"""
