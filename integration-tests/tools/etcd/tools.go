//go:build tools

// Package tools pins etcd: its program is a package main in the server's module.
package tools

import _ "go.etcd.io/etcd/server/v3"
