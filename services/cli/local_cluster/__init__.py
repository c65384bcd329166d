"""A whole Stafett cluster on this machine, as ordinary processes: for the demo, the tests and the benchmarks.

`processes` starts and ends them, `parts` knows how each is started, `containerd` runs private containerds, `images`
makes images, `cluster` puts a cluster together. `interruption` says where a user's wish to end it is obeyed, `sweeper`
takes it away when its owner is killed.
"""
