#!/bin/bash
# Boot a throw-away copy of this machine's system, and run guest.py in it.
#
#   boot.sh DIRECTORY
#
# DIRECTORY/checkout is copied to /usr/src/echod, where the commands of DIRECTORY/guest/install
# run before the boot. DIRECTORY/guest is mounted on /guest, read-write, and the booted system
# runs /guest/guest.py.
#
# A mount namespace holds all mounts and a PID namespace all processes, so that everything ends
# with one process.
set -euo pipefail

script=$(realpath "$0")
directory=$(realpath "$1")
name=${3-echod-test-$$}
LIMIT=280 # seconds

inside() {
    local machine=$directory/machine root=$directory/machine/root
    # The packages' files, without this machine's configuration.
    mkdir -p "$machine"
    mount -t tmpfs -o mode=755 tmpfs "$machine"
    mkdir "$machine"/{upper,work,root}
    mount -t overlay -o "lowerdir=/,upperdir=$machine/upper,workdir=$machine/work" overlay "$root"
    rm -rf "$root"/etc/{fstab,crypttab,machine-id,rc?.d,systemd/system} "$root"/opt/echod \
        "$root"/var/log/journal "$root"/usr/src/echod
    mkdir -p "$root"/{etc/systemd/{system,journald.conf.d},var/log/journal,guest}
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    # Where systemd does not run, systemd-nspawn would leave its files in /run.
    [ -d /run/systemd/system ] || mount -t tmpfs -o mode=755 tmpfs /run

    cp -r "$directory/checkout" "$root/usr/src/echod"
    local setenv=() variable
    for variable in $(compgen -e); do
        case $variable in PIP_* | SSL_* | *_proxy | *_PROXY) setenv+=("--setenv=$variable") ;; esac
    done
    # With this machine's network, which pip may need.
    spawn "${setenv[@]}" --pipe --chdir=/usr/src/echod /bin/bash -eux /guest/install

    # The journal drops no line, and the boot starts guest.py alone.
    printf '[Journal]\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf.d/all.conf"
    cat >"$root/etc/systemd/system/default.target" <<-'UNIT'
		[Unit]
		Requires=basic.target
		Wants=guest.service
		After=basic.target
	UNIT
    cat >"$root/etc/systemd/system/guest.service" <<-'UNIT'
		[Unit]
		Requires=dbus.socket
		After=basic.target dbus.socket
		SuccessAction=poweroff-force
		FailureAction=poweroff-force
		[Service]
		Type=oneshot
		ExecStart=/usr/bin/python3 /guest/guest.py
		LimitNOFILE=65536
		StandardOutput=journal+console
		StandardError=journal+console
	UNIT
    local status=0
    spawn --boot --private-network --tmpfs=/home --tmpfs=/root --console=read-only || status=$?
    journalctl --directory="$root/var/log/journal" --no-pager -o short-precise \
        >"$directory/journal" 2>&1 || true
    return "$status"
}

spawn() {
    systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --timezone=off \
        --machine="$name" --directory="$directory/machine/root" --bind="$directory/guest:/guest" \
        --setenv=SYSTEMD_COLORS=0 "$@" </dev/null
}

# A control group of its own: two instances of systemd cannot share one.
enter_groups() {
    local tree path
    while IFS=: read -r _ tree path; do
        case $tree in
        "") for tree in /sys/fs/cgroup /sys/fs/cgroup/unified; do enter "$tree$path"; done ;;
        name=systemd) enter "/sys/fs/cgroup/systemd$path" ;;
        esac
    done <<<"$(cat /proc/self/cgroup)"
}

enter() {
    if [ -e "$1/cgroup.procs" ] && mkdir "$1/$name"; then
        groups+=("$1/$name")
        echo 0 >"$1/$name/cgroup.procs"
    fi
}

leave_groups() {
    local group
    for group in "${groups[@]}"; do
        echo 0 >"${group%/*}/cgroup.procs" || true
        for _ in {1..100}; do # the last processes may take a moment to exit
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$group" ] || break
            sleep 0.05
        done
    done
    rmdir "$directory/machine" 2>/dev/null || true
}

if [ "${2-}" = inside ]; then
    inside
elif [ -d /run/systemd/system ] && [ "${2-}" != grouped ]; then
    # This machine's systemd creates the group, and removes it.
    variables=()
    for variable in $(compgen -e); do variables+=("--setenv=$variable"); done
    trap 'systemctl stop "$name.service"' TERM INT
    systemd-run --quiet --wait --pipe --collect --unit="$name" --property=Delegate=yes \
        --property=KillMode=control-group --property=RuntimeMaxSec=$((LIMIT + 10)) \
        "${variables[@]}" /bin/bash "$script" "$directory" grouped "$name" &
    wait $! || wait $!
else
    groups=()
    [ "${2-}" = grouped ] || enter_groups
    trap leave_groups EXIT
    trap 'kill "$child"' TERM INT
    timeout --kill-after=1 "$LIMIT" \
        unshare --mount --pid --fork --kill-child --mount-proc \
        /bin/bash "$script" "$directory" inside "$name" &
    child=$!
    wait "$child" || wait "$child"
fi
