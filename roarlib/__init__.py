"""ROAR, RemOve And Retrain: is a feature-importance estimator any good? (Hooker et al., NeurIPS 2019)

Read the modules in this order. What a study is: params, names. Data: data, textures, photos, stored. Science: own,
models, device, draws, attribute, remove, rankings, recursive, impute (imputeloops), degrade, augment, train. The
grid: results, grid, kernel, cluster, runner, leave, preflight, progress, cli. Answers: stats, verdicts, trust, paper,
toy, plots, labels. To look at: explore (views, curveview, imageviews, compareview), watch, report (page, provenance).
"""
