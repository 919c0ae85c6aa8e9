#!/bin/sh
# Stands in for RKE2's killall: stops the units and what they left running.
systemctl stop rke2-agent.service rke2-server.service
