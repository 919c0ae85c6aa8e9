"""Stands in for the program `rke2` on an agent node.

Real in it: how the configuration is read and merged, what is refused and with which words, TLS
with the token's CA hash, the node password, certificates signed by request, the load balancers on
loopback, the kubelet as a child with its own log, the Node object's life, and READY only at the
end of it all. Not in it: containers, images, CNI, the tunnel. It behaves so by facts/rke2.md;
each module names its section. Python 3.11 with the standard library and Debian's python3-yaml.
"""
