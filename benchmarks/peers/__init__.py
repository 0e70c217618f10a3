"""Other engines and other architectures, each in a process and an environment of its own, measured in turns with ours.

Nothing here is imported by the product, and no environment but the peers' own is touched.
"""
