"""The GPU code of the study: explain, rank, remove, retrain. Every function runs on any device.

Read in this order: models, zoo (other packages' models), transformers, draws (random numbers that belong to an image),
layers (a look inside a model), estimators, from_captum and cams (those that are not the paper's), maps (finished ones),
attribute (ensembles and variants of them all), rank (scores to rankings), store (those of all images, on disk),
degrade (remove, keep, impute), impute, augment, train, recursive (rankings made by retraining), randomise (rankings of
random weights).
"""
