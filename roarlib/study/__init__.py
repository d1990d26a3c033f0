"""What a study is, and what it leaves behind; imports nothing else of ours, and no torch until a device is asked for.

Read in this order: params (every knob; yaml12 reads the file, fresh writes a new one), names (the one catalogue of
estimators, modes and units, with their looks), files (where things lie, written atomically), machine (device,
precision, versions), own (users' functions and their sources), brought (their files), results (rows and their table),
rankings (what a ranking file says), earlier (what earlier runs left in the folder).
"""
