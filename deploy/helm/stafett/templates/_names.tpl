{{- define "stafett.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "stafett.fullname" -}}
{{- $name := include "stafett.name" . }}
{{- $whole := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $whole .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Takes (list root component). */}}
{{- define "stafett.selector" -}}
app.kubernetes.io/name: {{ include "stafett.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "stafett.labels" -}}
{{- $root := index . 0 }}
{{- include "stafett.selector" . }}
app.kubernetes.io/part-of: stafett
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}

{{- /* Name, namespace and labels. Takes (list root component suffix-of-name). */}}
{{- define "stafett.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "stafett.fullname" $root }}-{{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "stafett.labels" . | nindent 2 }}
{{- end }}

{{- /* Takes (list root image). */}}
{{- define "stafett.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $registry := default $image.registry $root.Values.global.imageRegistry | trimSuffix "/" }}
{{- with $registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "stafett.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* nodeSelector, affinity, tolerations and priority, where they are set. Takes the part's values. */}}
{{- define "stafett.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "stafett.noPrivileges" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "stafett.nobody" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{ include "stafett.noPrivileges" . }}
{{- end }}

{{- /* Root, as the host's files and containerd's socket are root's; without a single capability. */}}
{{- define "stafett.root" -}}
runAsUser: 0
runAsGroup: 0
{{ include "stafett.noPrivileges" . }}
{{- with .Values.host.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
