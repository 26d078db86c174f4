# Sourced by the scripts beside this folder: installs the Debian packages that are missing, and only those.
# What Pandora needs to build and run, what its tests drive it with, and what the benchmark compares it with.
packages_run="ca-certificates curl git libcurl4-openssl-dev libpq-dev pkg-config postgresql util-linux"
packages_test="$packages_run nghttp2-client nginx openssl python3 python3-venv wrk"
packages_bench="$packages_test libnginx-mod-http-lua"

install_packages() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "Installing Debian packages: ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
    # postgresql would create and start a cluster of its own on installation, nginx a server on port 80: neither is wanted.
    local policy=/usr/sbin/policy-rc.d made_policy=""
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod +x "$policy"
        made_policy=yes
    fi
    local status=0
    "${as_root[@]}" apt-get update -qq || status=$?
    [ "$status" -ne 0 ] || "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || status=$?
    if [ -n "$made_policy" ]; then "${as_root[@]}" rm -f "$policy"; fi
    return "$status"
}

need_swift() {
    command -v swift >/dev/null && return 0
    echo "A Swift 6.3 toolchain is needed (https://www.swift.org/install/linux/): 'swift' is not on the PATH." >&2
    return 1
}
