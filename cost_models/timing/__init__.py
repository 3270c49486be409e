"""How long one piece takes: kernels on a device, collectives on the links that a group crosses, calls on a host."""
