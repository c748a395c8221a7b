#!/bin/sh
# The network of a cluster, in a new network and mount namespace: `sh fabric.sh HOSTS`. Stays to hold the namespaces.
set -eu
mount --bind "$1" /etc/hosts
ip link set lo up
ip link add br0 type bridge
ip address add 10.77.0.1/24 dev br0
ip link set br0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
for node in 1 2 3 4; do
  ip route add "10.244.$node.0/24" via "10.77.0.1$node"
done
echo ready
exec sleep infinity
