"""Stand-ins for Rancher: `server` is Rancher itself, `machine` rancher-machine's part in user-data,
`install.sh` and `system_agent.py` what Rancher brings to a node (facts/rke2.md §6)."""
