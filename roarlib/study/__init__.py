"""What a study is and what it leaves behind; imports no other room, and torch only once a device is asked for.

Read in this order: params (every parameter; yaml12 reads the file, fresh writes a new one), names (the one catalogue of
estimators, modes and units, and how they are drawn), files (where things are, what earlier runs left, atomic
writing), machine (device, precision, versions), own (users' functions and their sources), brought (users' files),
results (rows and their table), rankings (reading ranking files).
"""
