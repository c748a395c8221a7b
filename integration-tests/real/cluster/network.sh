#!/bin/sh
# The addresses and routes of node $1, in its network namespace, once its cable is there.
set -eu
ip link set lo up
ip address add "10.77.0.1$1/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
for node in 1 2 3 4; do
  if [ "$node" != "$1" ]; then ip route add "10.244.$node.0/24" via "10.77.0.1$node"; fi
done
