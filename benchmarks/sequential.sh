#!/bin/sh
# A GPU worker by hand: the work that gpuboot does, one thing after the other, as a careful operator
# would script it. One update, one install, nothing done twice, no sleep but in the two loops that
# wait for the node. `make bench` times it beside gpuboot on a machine of the same kind.
#
# What the lab differs in from the world stands in /etc/gpu-worker.env. Each phase is written to
# /root/phases as NAME SECONDS, as soon as it has ended.
set -eu
# shellcheck source=/dev/null
. /etc/gpu-worker.env

began=$(date +%s.%N)
ended() {
    now=$(date +%s.%N)
    printf '%s %s %s\n' "$1" "$began" "$now" | awk '{ printf "%s %.2f\n", $1, $3 - $2 }' >> /root/phases
    began=$now
}
rm -f /root/phases

# nouveau is kept out before the driver comes, whose packages renew the initramfs anyway.
cat > /etc/modprobe.d/gpu-worker.conf <<EOF
blacklist nouveau
options nouveau modeset=0
options nvidia NVreg_EnableGpuFirmware=0
options nvidia-current NVreg_EnableGpuFirmware=0
EOF
printf 'nvidia\nnvidia-uvm\n' > /etc/modules-load.d/gpu-worker.conf
debian=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
cat > /etc/apt/sources.list.d/gpu-worker.list <<EOF
deb [signed-by=$ARCHIVE_KEY] $ARCHIVE $debian main contrib non-free non-free-firmware
deb [signed-by=$TOOLKIT_KEY] $TOOLKIT /
EOF
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
apt-get -qq update
ended update

kernel=$(uname -r)
apt-get -qq --no-install-recommends install -y \
    "linux-headers-$kernel" linux-headers-amd64 nvidia-kernel-dkms nvidia-smi libnvidia-ml1 libcuda1 \
    nvidia-modprobe nvidia-persistenced firmware-nvidia-gsp python3-pynvml \
    nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1
apt-mark -qq hold nvidia-kernel-dkms nvidia-smi libnvidia-ml1 libcuda1 nvidia-container-toolkit \
    nvidia-container-toolkit-base libnvidia-container-tools libnvidia-container1
ended install

modprobe -r nouveau 2> /dev/null || true
modprobe nvidia
modprobe nvidia-uvm
nvidia-modprobe -c 0 -c 255
nvidia-modprobe -u -c 0
systemctl start nvidia-persistenced
nvidia-smi -L | grep -q UUID
ended load

systemctl reset-failed nvidia-cdi-refresh
systemctl restart nvidia-cdi-refresh
nvidia-ctk --quiet cdi list | grep -q nvidia.com/gpu=all
ended cdi

curl -fsSL -o /tmp/rke2.tar.gz "$RELEASES/$(printf %s "$RKE2_VERSION" | sed 's/+/%2B/')/rke2.linux-amd64.tar.gz"
echo "$RKE2_SHA256  /tmp/rke2.tar.gz" | sha256sum --check --quiet
ended fetch

tar -xzf /tmp/rke2.tar.gz -C /usr/local
rm /tmp/rke2.tar.gz
systemctl daemon-reload
ended unpack

mkdir -p /etc/rancher/rke2
cat > /etc/rancher/rke2/config.yaml <<EOF
server: "$SERVER"
token-file: /etc/gpuboot/token
node-label: ["nvidia.com/gpu=present", "example.com/pool=t4"]
node-taint: ["nvidia.com/gpu=present:NoSchedule"]
EOF
chmod 0600 /etc/rancher/rke2/config.yaml
systemctl enable -q --now rke2-agent
agent=/var/lib/rancher/rke2/agent
ready() {
    curl -fsS --cacert $agent/server-ca.crt --cert $agent/client-kubelet.crt --key $agent/client-kubelet.key \
        "$(awk '$1 == "server:" { print $2 }' $agent/kubelet.kubeconfig)/api/v1/nodes/$(hostname)" 2> /dev/null |
        python3 -c 'import json, sys
node = json.load(sys.stdin)
sys.exit(not any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"]))'
}
until ready 2> /dev/null; do sleep 0.5; done
ended join
