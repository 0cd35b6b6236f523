"""Files kept by content: trees, whose id is the hash of their manifest, and whose files are blobs by hash.

Code, data, outputs and models are all trees. Nothing is read unverified, and no name that comes from
outside leaves the folder it belongs in. client, scheduler, agent, training and serving may import this room.
"""
