"""Stand-ins for RKE2: `agent` is the program in a node, `server` the cluster it joins."""
