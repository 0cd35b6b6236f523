"""One file per gRPC service: what comes in is checked here, and becomes stimuli for the loop.

Nothing here changes state; what a reply says was committed before.
"""
