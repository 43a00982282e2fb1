#!/bin/sh
# Make this process, PID 1 of its own namespaces, the container of a training job, and become its command.
#
#   enter_container.sh FOLDER PYTHON [HIDDEN]... -- COMMAND...
#
# FOLDER is that of one host (tree.py); PYTHON is the environment that the job may write to without any effect;
# a HIDDEN folder does not exist for the job if it lies in PYTHON, and is empty elsewhere.
set -e
folder=$1 python=$2
shift 2

# The namespaces end with the job, and all that is mounted here with them.
work=$folder/work
mkdir "$work"
mount -t tmpfs none "$work"
mkdir "$work/opt" "$work/upper" "$work/layers"
mount --bind /opt "$work/opt"
mount -t tmpfs none /opt
for entry in "$work"/opt/*/; do
    [ -d "$entry" ] || continue
    name=$(basename "$entry")
    [ "$name" = ml ] && continue
    mkdir "/opt/$name"
    mount --rbind "$entry" "/opt/$name"
done

mkdir /opt/ml
mount --bind "$folder/ml" /opt/ml
mount --bind "$folder/hosts" /etc/hosts
for view in "$folder"/views/*/; do
    [ -d "$view" ] || continue
    channel=/opt/ml/input/data/$(basename "$view")
    mount --bind "$view" "$channel"
    mount -o remount,ro,bind "$channel"
done

# pip install goes to memory, and what is hidden is whited out there; where there are no overlays, pip install fails.
while [ "$1" != -- ]; do
    below=${1#"$python"/}
    if [ "$below" = "$1" ]; then
        mount -t tmpfs none "$1"
    else
        mkdir -p "$work/upper/$(dirname "$below")"
        mknod "$work/upper/$below" c 0 0
    fi
    shift
done
shift
mount -t overlay overlay -o "lowerdir=$python,upperdir=$work/upper,workdir=$work/layers" "$python" 2>/dev/null || {
    mount --bind "$python" "$python"
    mount -o remount,ro,bind "$python"
}

# Alone in its network namespace, a host has to bring up its loopback interface.
[ -z "$ALONE" ] || ip link set lo up
unset ALONE
cd /
exec "$@"
