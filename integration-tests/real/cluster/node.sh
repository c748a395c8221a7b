#!/bin/sh
# PID 1 of a node, in new namespaces: `sh node.sh NAME FOLDER`. Lays the node's own folders over those of the machine that
# containerd and the kubelet write to, and stays to hold the namespaces.
set -eu
name=$1 folder=$2
hostname "$name"
# Volumes are mounted by the kubelet and seen by containers; to this node's namespace nothing propagates in or out.
mount --make-rshared /
mount --rbind "$folder/lib" /var/lib
mount --bind "$folder/log" /var/log
mount --bind "$folder/etc/hosts" /etc/hosts
mount --bind "$folder/etc/containerd" /etc/containerd
mount --bind "$folder/run" /run
# The kubelet sets these for the whole machine. It finds them set as it wants them.
while read -r name value; do
  echo "$value" >"/run/sysctl-$name"
  mount --bind "/run/sysctl-$name" "/proc/sys/$(echo "$name" | tr . /)"
done <<'LIST'
kernel.panic 10
kernel.panic_on_oops 1
kernel.keys.root_maxkeys 1000000
kernel.keys.root_maxbytes 25000000
vm.overcommit_memory 1
vm.panic_on_oom 0
LIST
echo ready
# As PID 1 it reaps what loses its parent, containerd's shims among them.
sleep infinity &
wait
