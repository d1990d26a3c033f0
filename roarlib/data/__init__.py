"""Images as arrays: prepared once on disk, then memory-mapped by every stage.

Read in this order: datasets (a study's data), textures (synthetic images whose informative pixels are known), photos
(folders of pictures), arrays (users' own), prepare (decoding once, resumable), listing (a list of the images).
"""
