"""The GPU code of the study: explain, rank, remove, retrain. Every function runs on any device.

Read in this order: models, zoo (other packages' models), transformers, draws (random numbers that belong to an image),
layers (a look inside a model), estimators, from_captum and cams (estimators beyond the paper's), maps (finished maps),
attribute (ensembles and variants of all of these), rank (scores to rankings), store (rankings of all images, on disk),
degrade (remove, keep, impute), impute, augment, train, recursive (rankings made by retraining), randomise (rankings
with random weights).
"""
