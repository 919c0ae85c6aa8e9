#!/bin/sh
# Stands in for RKE2's uninstall: stops it and removes its files, the node password among them.
/usr/local/bin/rke2-killall.sh
systemctl disable rke2-agent.service rke2-server.service
rm -rf /etc/rancher/rke2 /etc/rancher/node /var/lib/rancher/rke2 /usr/local/share/rke2
rm -f /usr/local/bin/rke2 /usr/local/bin/rke2-killall.sh /usr/local/bin/rke2-uninstall.sh
rm -f /usr/local/lib/systemd/system/rke2-agent.* /usr/local/lib/systemd/system/rke2-server.*
systemctl daemon-reload
