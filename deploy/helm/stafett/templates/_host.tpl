{{- /* Where distributions keep containerd's files, as `stafett configure` has it. */}}
{{- define "stafett.distros" -}}
containerd: &usual
  socket: /run/containerd/containerd.sock
  contentRoot: /var/lib/containerd/io.containerd.content.v1.content
  hostsDir: /etc/containerd/certs.d
eks: *usual
gke:
  <<: *usual
  hostsDir: /etc/containerd/hosts.d
talos:
  <<: *usual
  hostsDir: /etc/cri/conf.d/hosts
k3s:
  socket: /run/k3s/containerd/containerd.sock
  contentRoot: /var/lib/rancher/k3s/agent/containerd/io.containerd.content.v1.content
  hostsDir: /var/lib/rancher/k3s/agent/etc/containerd/certs.d
rke2:
  socket: /run/k3s/containerd/containerd.sock
  contentRoot: /var/lib/rancher/rke2/agent/containerd/io.containerd.content.v1.content
  hostsDir: /var/lib/rancher/rke2/agent/etc/containerd/certs.d
{{- end }}

{{- /* Takes (list root key). */}}
{{- define "stafett.path" -}}
{{- $containerd := (index . 0).Values.containerd }}
{{- $usual := index (include "stafett.distros" . | fromYaml) $containerd.distro }}
{{- default (index $usual (index . 1)) (index $containerd (index . 1)) }}
{{- end }}

{{- /* Arguments of `stafett configure` that say whose files are meant. */}}
{{- define "stafett.configureWhere" -}}
- configure
- --distro={{ .Values.containerd.distro }}
{{- with .Values.containerd.hostsDir }}
- --hosts-dir={{ . }}
{{- end }}
{{- end }}

{{- /* The folder above that of the mirror files, which is made with the first of them and goes with the last. */}}
{{- define "stafett.hostsVolume" -}}
- name: containerd-configuration
  hostPath:
    path: {{ include "stafett.path" (list . "hostsDir") | dir }}
    type: DirectoryOrCreate
{{- end }}

{{- define "stafett.hostsMount" -}}
- name: containerd-configuration
  mountPath: {{ include "stafett.path" (list . "hostsDir") | dir }}
{{- end }}

{{- /* Both containers have the variables of both, so that `stafett doctor` sees the whole host from either. */}}
{{- define "stafett.hostEnvironment" -}}
{{- $upstreams := dict }}
{{- range .Values.registries }}
{{- if .upstream }}{{ $_ := set $upstreams .name .upstream }}{{ end }}
{{- end -}}
- name: STAFETT_NODE_NODE_ID
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: STAFETT_NODE_LISTEN_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
- name: STAFETT_NODE_LISTEN_PORT
  value: {{ .Values.node.port | quote }}
- name: STAFETT_NODE_TRACKER
  value: {{ include "stafett.trackerTarget" . }}
- name: STAFETT_NODE_CONTAINERD_SOCKET
  value: {{ include "stafett.path" (list . "socket") }}
- name: STAFETT_NODE_CONTENT_ROOT
  value: {{ include "stafett.path" (list . "contentRoot") }}
{{ include "stafett.part" (list . "STAFETT_NODE" .Values.node.settings) }}
- name: STAFETT_GATEWAY_NODE_ID
  value: $(STAFETT_NODE_NODE_ID)
- name: STAFETT_GATEWAY_NODE_TARGET
  value: "[$(STAFETT_NODE_LISTEN_HOST)]:{{ .Values.node.port }}"
- name: STAFETT_GATEWAY_LISTEN_PORT
  value: {{ .Values.gateway.mirrorPort | quote }}
- name: STAFETT_GATEWAY_TAG_PORT
  value: {{ .Values.gateway.tagPort | quote }}
- name: STAFETT_GATEWAY_TRACKER
  value: {{ include "stafett.trackerTarget" . }}
{{- with $upstreams }}
- name: STAFETT_GATEWAY_UPSTREAM_URLS
  value: {{ toJson . | quote }}
{{- end }}
{{ include "stafett.part" (list . "STAFETT_GATEWAY" .Values.gateway.settings) }}
{{- range $part, $port := dict "NODE" .Values.metrics.nodePort "GATEWAY" .Values.metrics.gatewayPort }}
- name: STAFETT_{{ $part }}_METRICS_PORT
  value: {{ $port | quote }}
{{- if $.Values.metrics.enabled }}
- name: STAFETT_{{ $part }}_METRICS_HOST
  value: $(STAFETT_NODE_LISTEN_HOST)
{{- end }}
{{- end }}
{{- if .Values.topology.enabled }}
- name: STAFETT_SETTINGS_DIR
  value: /run/stafett
{{- end }}
{{ include "stafett.commands" . }}
{{- with include "stafett.traces" . }}{{ . | nindent 0 }}{{ end }}
{{- end }}

{{- define "stafett.hostMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.topology.enabled }}
- name: settings
  mountPath: /run/stafett
  readOnly: true
{{- end }}
{{- if .Values.tls.enabled }}
{{ include "stafett.tlsMount" . }}
{{- end }}
{{- end }}

{{- /* A command of ours that ends: 36 MiB measured. */}}
{{- define "stafett.shortLived" -}}
requests: {cpu: 10m, memory: 64Mi}
limits: {memory: 128Mi}
{{- end }}
