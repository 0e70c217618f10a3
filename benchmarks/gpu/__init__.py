"""What a GPU must show of the plugins' kernels: right, free of races, and how near the memory's limit they are."""
