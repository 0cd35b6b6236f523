"""One file per gRPC service: checks what comes in, asks the loop, answers after the commit."""
