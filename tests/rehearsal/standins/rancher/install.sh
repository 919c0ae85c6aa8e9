#!/bin/sh
# Stands in for the install.sh of Rancher's system-agent: its arguments, its order of steps, its
# loops and what it says while it loops. It needs curl, openssl and sha256sum as that one does.
# CATTLE_* variables stand above this text in a machine's own copy.

RETRIES=4500
CONFIG=/etc/rancher/agent
VAR=/var/lib/rancher/agent
PROGRAM=/usr/local/bin/rancher-system-agent

info() { echo "[INFO] " "$@"; }
error() { echo "[ERROR] " "$@" >&2; }
fatal() {
    echo "[FATAL] " "$@" >&2
    exit 1
}

# A comma-separated list with one more element.
listed() { if [ -n "$1" ]; then echo "$1,$2"; else echo "$2"; fi; }

parse_args() {
    while [ $# -gt 0 ]; do
        case "$1" in
        -s | --server) CATTLE_SERVER=$2 && shift ;;
        -t | --token) CATTLE_TOKEN=$2 && shift ;;
        -c | --ca-checksum) CATTLE_CA_CHECKSUM=$2 && shift ;;
        -n | --node-name) CATTLE_NODE_NAME=$2 && shift ;;
        -l | --label) CATTLE_LABELS=$(listed "$CATTLE_LABELS" "$2") && shift ;;
        --taint | --taints) CATTLE_TAINTS=$(listed "$CATTLE_TAINTS" "$2") && shift ;;
        -w | --worker) CATTLE_ROLE_WORKER=true ;;
        -p | --controlplane) CATTLE_ROLE_CONTROLPLANE=true ;;
        -e | --etcd) CATTLE_ROLE_ETCD=true ;;
        --no-roles) CATTLE_ROLE_NONE=true ;;
        *) fatal "Unknown argument passed in ($1)" ;;
        esac
        shift
    done
}

# Calls curl until it has got a file: what it is called, the file, curl's further arguments.
download() {
    what=$1 file=$2
    shift 2
    tries=0
    while [ "$tries" -lt "$RETRIES" ]; do
        status=$(curl --connect-timeout 60 --max-time 300 --write-out '%{http_code}' --silent \
            --output "$file" "$@")
        if [ "$status" = 200 ]; then
            info "Successfully downloaded $what"
            return
        fi
        error "$status received while downloading $what. Sleeping for 5 seconds and trying again"
        sleep 5
        tries=$((tries + 1))
    done
    fatal "Failed to download $what in $RETRIES attempts"
}

validate_ca_checksum() {
    certificate=$(mktemp)
    download "the CA certificate" "$certificate" --insecure "$CATTLE_SERVER/cacerts"
    openssl x509 -in "$certificate" -noout || fatal "/cacerts does not look like an x509 certificate"
    found=$(sha256sum "$certificate" | cut -d ' ' -f 1)
    if [ "$found" != "$CATTLE_CA_CHECKSUM" ]; then
        error "Configured cacerts checksum ($found) does not match given --ca-checksum ($CATTLE_CA_CHECKSUM)"
        exit 1
    fi
}

generate_config() {
    cat >"$CONFIG/config.yaml" <<END
workDirectory: $VAR/work
localPlanDirectory: $VAR/plans
interlockDirectory: $VAR/interlock
appliedPlanDirectory: $VAR/applied
remoteEnabled: true
preserveWorkDirectory: false
connectionInfoFile: $VAR/rancher2_connection_info.json
END
    if [ ! -f "$CONFIG/cattle-id" ]; then
        sha256sum /etc/machine-id | cut -d ' ' -f 1 >"$CONFIG/cattle-id"
    fi
    CATTLE_ID=$(cat "$CONFIG/cattle-id")
}

# The headers go in by a file: a process list is for everyone to read.
retrieve_connection_info() {
    headers=$(mktemp)
    cat >"$headers" <<END
Authorization: Bearer $CATTLE_TOKEN
X-Cattle-Id: $CATTLE_ID
X-Cattle-Role-Etcd: ${CATTLE_ROLE_ETCD:-false}
X-Cattle-Role-Control-Plane: ${CATTLE_ROLE_CONTROLPLANE:-false}
X-Cattle-Role-Worker: ${CATTLE_ROLE_WORKER:-false}
X-Cattle-Node-Name: $CATTLE_NODE_NAME
X-Cattle-Labels: $CATTLE_LABELS
X-Cattle-Taints: $CATTLE_TAINTS
END
    # Like the real one, it leaves the text of a refusal where the connection is expected.
    download "Rancher connection information" "$VAR/rancher2_connection_info.json" \
        --cacert "$certificate" --header "@$headers" "$CATTLE_SERVER/v3/connect/agent"
    rm -f "$headers"
}

create_unit() {
    info "systemd: Creating service file"
    cat >/etc/systemd/system/rancher-system-agent.service <<END
[Unit]
Description=Rancher System Agent (a stand-in)
Documentation=https://www.rancher.com
Wants=network-online.target
After=network-online.target
[Install]
WantedBy=multi-user.target
[Service]
EnvironmentFile=-/etc/default/rancher-system-agent
EnvironmentFile=-/etc/sysconfig/rancher-system-agent
EnvironmentFile=-/etc/systemd/system/rancher-system-agent.env
Type=simple
Restart=always
RestartSec=5s
Environment=CATTLE_LOGLEVEL=info
Environment=CATTLE_AGENT_CONFIG=$CONFIG/config.yaml
ExecStart=$PROGRAM sentinel
END
    env | grep -Ei '^(NO|HTTP|HTTPS)_PROXY' >/etc/systemd/system/rancher-system-agent.env
}

parse_args "$@"
[ -n "$CATTLE_TOKEN" ] || fatal "Environment variable CATTLE_TOKEN was not set"
[ -n "$CATTLE_SERVER" ] || fatal "Environment variable CATTLE_SERVER was not set"
[ "$CATTLE_ROLE_NONE$CATTLE_ROLE_WORKER$CATTLE_ROLE_CONTROLPLANE$CATTLE_ROLE_ETCD" ] ||
    fatal "You must select at least one role."
mkdir -p "$CONFIG" "$VAR"
chmod 0700 "$CONFIG" "$VAR"
validate_ca_checksum
systemctl stop rancher-system-agent.service 2>/dev/null
download "the rancher-system-agent binary" "$PROGRAM" --cacert "$certificate" --location --fail \
    "${CATTLE_AGENT_BINARY_BASE_URL:-$CATTLE_SERVER/assets}/rancher-system-agent-amd64"
chmod 0755 "$PROGRAM"
umask 0177 # the system-agent refuses its two files if others can read them
generate_config
retrieve_connection_info
umask 0022
create_unit
systemctl daemon-reload
info "Enabling rancher-system-agent.service"
systemctl enable rancher-system-agent
info "Starting/restarting rancher-system-agent.service"
systemctl restart rancher-system-agent
exit 0
