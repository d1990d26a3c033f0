"""Images as arrays: prepared once on disk, then memory-mapped by every stage.

Read in this order: datasets (what a study's data are), textures (images whose answer is known), photos (folders of
pictures), prepare (decoded once, resumable).
"""
