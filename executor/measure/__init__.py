"""`executor profile`: measures kernels, collectives and framework time of this machine."""
