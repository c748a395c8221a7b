//go:build tools

// Package tools pins crictl: its module cannot be installed by `go install MODULE@VERSION`.
package tools

import _ "sigs.k8s.io/cri-tools/cmd/crictl"
