{{- /* A value as an environment variable has it: lists by commas, maps as JSON, whole numbers without an exponent. */}}
{{- define "stafett.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "map" . }}{{ toJson . }}
{{- else if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}
{{- else }}{{ . }}{{ end }}
{{- end }}

{{- /* Variables of one part: what the user set, the log level, certificates. Takes (list root PREFIX settings). */}}
{{- define "stafett.part" -}}
{{- $root := index . 0 }}
{{- $prefix := index . 1 -}}
- name: {{ $prefix }}_LOG_LEVEL
  value: {{ $root.Values.logLevel }}
{{- range $key, $value := index . 2 }}
- name: {{ $prefix }}_{{ upper $key }}
  value: {{ include "stafett.text" $value | quote }}
{{- end }}
{{- if $root.Values.tls.enabled }}
{{- include "stafett.certificates" (list $root $prefix) }}
{{- else }}
- name: {{ $prefix }}_ALLOW_PLAINTEXT
  value: "true"
{{- end }}
{{- end }}

{{- define "stafett.certificates" }}
{{- $prefix := index . 1 }}
- name: {{ $prefix }}_TLS_CERTIFICATE
  value: /etc/stafett/tls/tls.crt
- name: {{ $prefix }}_TLS_KEY
  value: /etc/stafett/tls/tls.key
- name: {{ $prefix }}_TLS_AUTHORITY
  value: /etc/stafett/tls/ca.crt
- name: {{ $prefix }}_TLS_PEER_NAME
  value: {{ include "stafett.peerName" (index . 0) }}
{{- end }}

{{- /* For commands that an operator runs in a pod: stafett nodes, stafett doctor, stafett drain. */}}
{{- define "stafett.commands" -}}
- name: STAFETT_TRACKER
  value: {{ include "stafett.trackerTarget" . }}
{{- if .Values.tls.enabled }}
{{- include "stafett.certificates" (list . "STAFETT") }}
{{- end }}
{{- end }}

{{- define "stafett.traces" -}}
{{- with .Values.tracing }}
{{- if .endpoint -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol }}
{{- range $name, $value := .environment }}
- name: {{ $name }}
  value: {{ include "stafett.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "stafett.trackerTarget" -}}
dns:///{{ include "stafett.fullname" . }}-tracker.{{ .Release.Namespace }}.svc:{{ .Values.tracker.port }}
{{- end }}

{{- /* Name in every part's certificate. Hosts and pods are reached under addresses, which no certificate can have. */}}
{{- define "stafett.peerName" -}}
{{ include "stafett.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Name of a part's Secret with certificates. Takes (list root part). */}}
{{- define "stafett.tlsSecret" -}}
{{- $root := index . 0 }}
{{- if eq $root.Values.tls.source "secret" }}
{{- required (printf "tls.secrets.%s: name the Secret with the certificate" (index . 1)) (index $root.Values.tls.secrets (index . 1)) }}
{{- else }}
{{- include "stafett.fullname" $root }}-{{ index . 1 }}-tls
{{- end }}
{{- end }}

{{- define "stafett.tlsVolume" -}}
- name: tls
  secret:
    secretName: {{ include "stafett.tlsSecret" . }}
    defaultMode: 0440
{{- end }}

{{- define "stafett.tlsMount" -}}
- name: tls
  mountPath: /etc/stafett/tls
  readOnly: true
{{- end }}

{{- define "stafett.ownRedis" -}}
{{- if not (or .Values.redis.url .Values.redis.existingSecret.name) }}yes{{ end }}
{{- end }}

{{- /* Token of the service account, for the one container that asks the API server. */}}
{{- define "stafett.tokenVolume" -}}
- name: token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
{{- end }}

{{- define "stafett.tokenMount" -}}
- name: token
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}

{{- /* Names in a part's certificate; Redis is reached under its own, as Redis clients know no other way. */}}
{{- define "stafett.certificateNames" -}}
{{- $root := index . 0 -}}
- {{ include "stafett.peerName" $root }}
- {{ include "stafett.fullname" $root }}-{{ index . 1 }}
- {{ include "stafett.fullname" $root }}-{{ index . 1 }}.{{ $root.Release.Namespace }}.svc
{{- end }}
