"""The stand-ins: what a rehearsal has in place of hardware and of a cluster."""
