{{/* What names start with: the release's name, if it has "coral" in it. */}}
{{- define "coral.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "coral" $name) -}}{{- $name = printf "%s-coral" $name -}}{{- end -}}
{{- $name | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels by which Services, policies and workloads find pods: (list $ "registry"). They never change. */}}
{{- define "coral.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: coral
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object: (list $ "registry"). */}}
{{- define "coral.labels" -}}
{{- $root := index . 0 -}}
{{ include "coral.selector" . }}
app.kubernetes.io/part-of: coral
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Name, namespace and labels: (list $ "registry" "suffix"). */}}
{{- define "coral.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "coral.name" $root }}-{{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "coral.labels" . | nindent 2 }}
{{- end -}}

{{/* An image and how it is pulled: (list $ "registry"). */}}
{{- define "coral.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $name := printf "%s/coral-%s" $image.repository (index . 1) -}}
{{- $digest := index $image.digests (index . 1) -}}
{{- if $digest -}}
image: {{ $name }}@{{ $digest }}
{{- else -}}
image: {{ $name }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* What every pod has: (list $ "registry"). */}}
{{- define "coral.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Pod Security level restricted, for a pod. The images know this user. */}}
{{- define "coral.restricted" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* Of every container, the warmer's too. */}}
{{- define "coral.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* Flags of every program. */}}
{{- define "coral.log" -}}
- --log={{ .Values.log.filter }}
- --log-format={{ .Values.log.format }}
{{- end -}}

{{/* Probes of a program: port and scheme. */}}
{{- define "coral.probes" -}}
{{- $of := printf "port: %s, scheme: %s" (first .) (last .) -}}
startupProbe:
  httpGet: { path: /livez, {{ $of }} }
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: { path: /livez, {{ $of }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, {{ $of }} }
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* Is it restricted what ImageCaches may list? An empty list is a restriction, too. */}}
{{- define "coral.allowedImages" -}}
{{- if or .Values.allowedImages.namespaces (not (kindIs "invalid" .Values.allowedImages.others)) }}yes{{ end -}}
{{- end -}}

{{/* Does the registry serve HTTPS? The name of the Secret, or nothing. */}}
{{- define "coral.registry.tls" -}}
{{- $tls := .Values.registry.tls -}}
{{- if $tls.secret -}}
{{- $tls.secret -}}
{{- else if $tls.certManager.enabled -}}
{{- include "coral.name" . }}-registry-tls
{{- end -}}
{{- end -}}

{{/* Host of the registry inside of the cluster: the number, if it is known, since that needs no DNS. */}}
{{- define "coral.registry.host" -}}
{{- with .Values.registry.service.clusterIP -}}
{{- if contains ":" . }}[{{ . }}]{{ else }}{{ . }}{{ end -}}
{{- else -}}
{{- include "coral.name" . }}-registry.{{ .Release.Namespace }}.svc
{{- end -}}
{{- end -}}

{{- define "coral.registry.admin" -}}
{{ if include "coral.registry.tls" . }}https{{ else }}http{{ end }}://{{ include "coral.registry.host" . }}:9090
{{- end -}}

{{/* What a pod needs to use the admin API: a token, and what the certificate is checked against (not the key). */}}
{{- define "coral.registry.login" -}}
- name: registry
  projected:
    sources:
      - serviceAccountToken: { audience: coral-registry, path: token, expirationSeconds: 3600 }
      {{- if and (include "coral.registry.tls" .) .Values.registry.tls.ca }}
      - secret:
          name: {{ include "coral.registry.tls" . }}
          items: [{ key: ca.crt, path: ca.crt }]
      {{- end }}
{{- end -}}

{{/* What nodes are told. */}}
{{- define "coral.registry.address" -}}
{{- if include "coral.registry.tls" . }}https://{{ end -}}
{{- .Values.registry.address | default (printf "service/%s-registry:5000" (include "coral.name" .)) -}}
{{- end -}}

{{/* Upstreams, with our own images denied at theirs: they must not wait for a cache that they are (L37). As JSON. */}}
{{- define "coral.registry.upstreams" -}}
{{- $repository := .Values.image.repository -}}
{{- $host := first (splitList "/" $repository) -}}
{{- $path := trimPrefix $host $repository | trimPrefix "/" -}}
{{- if not (or (contains "." $host) (contains ":" $host) (eq $host "localhost")) -}}
{{- $host = "docker.io" -}}
{{- $path = $repository -}}
{{- end -}}
{{- $upstreams := dict -}}
{{- range $name, $upstream := .Values.registry.upstreams -}}
{{- $upstream = deepCopy (default dict $upstream) -}}
{{- if or (eq $name $host) (has $host ($upstream.aliases | default list)) -}}
{{- $deny := $upstream.deny | default list -}}
{{- range list "registry" "operator" "warmer" -}}
{{- $own := trimPrefix "/" (printf "%s/coral-%s" $path .) -}}
{{- if not (has $own $deny) -}}{{- $deny = append $deny $own -}}{{- end -}}
{{- end -}}
{{- $_ := set $upstream "deny" $deny -}}
{{- end -}}
{{- $_ := set $upstreams $name $upstream -}}
{{- end -}}
{{- toJson $upstreams -}}
{{- end -}}

{{/* What only a start of the registry can change: its pod is replaced when this is another text. */}}
{{- define "coral.registry.fixed" -}}
{{- $name := printf "%s-registry" (include "coral.name" .) -}}
listen: 0.0.0.0:5000
admin:
  listen: 0.0.0.0:9090
  hosts: [{{ $name }}, {{ $name }}.{{ .Release.Namespace }}, {{ $name }}.{{ .Release.Namespace }}.svc]
  {{- if include "coral.registry.tls" . }}
  tls: { certificate: /tls/tls.crt, key: /tls/tls.key }
  {{- end }}
  auth:
    audience: coral-registry
    jwks: {{ .Values.registry.admin.apiServer }}/openid/v1/jwks
    jwksCA: /kubernetes/ca.crt
    jwksToken: /kubernetes/token
    subjects:
      - system:serviceaccount:{{ .Release.Namespace }}:{{ include "coral.name" . }}-operator
      {{- range .Values.registry.admin.subjects }}
      - {{ . }}
      {{- end }}
data: /var/lib/coral
store:
  maxBytes: {{ .Values.registry.store.maxBytes | default .Values.registry.persistence.size }}
{{- if include "coral.registry.tls" . }}
tls: { certificate: /tls/tls.crt, key: /tls/tls.key }
{{- end }}
{{- end -}}

{{/* The registry's configuration file. */}}
{{- define "coral.registry.config" -}}
{{- $registry := .Values.registry -}}
{{- $upstreams := include "coral.registry.upstreams" . | fromJson -}}
{{ include "coral.registry.fixed" . }}
address: {{ $registry.address | default (printf "%s:5000" (include "coral.registry.host" .)) | quote }}
# The pod has 70 s.
shutdownGrace: 55s
connections: {{ int $registry.connections }}
manifest:
  {{- toYaml $registry.manifest | nindent 2 }}
cache:
  {{- toYaml $registry.cache | nindent 2 }}
{{- with $registry.defaultUpstream }}
defaultUpstream: {{ . }}
{{- end }}
{{- range $key := list "hosted" "users" "access" }}
{{- with get $registry $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if $registry.anonymousPush }}
anonymousPush: true
{{- end }}
upstreams:
  {{- toYaml $upstreams | nindent 2 }}
{{- end -}}
