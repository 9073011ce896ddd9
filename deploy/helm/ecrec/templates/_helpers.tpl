{{/* K and R of the code. */}}
{{- define "ecrec.k" -}}{{ first (splitList "+" .Values.code) }}{{- end }}
{{- define "ecrec.r" -}}{{ last (splitList "+" .Values.code) }}{{- end }}

{{- define "ecrec.spares" -}}
{{- if kindIs "invalid" .Values.spares }}{{ mul (include "ecrec.r" . | int) .Values.groups }}{{ else }}{{ .Values.spares }}{{ end }}
{{- end }}

{{/* Servers with a place, and spares. */}}
{{- define "ecrec.servers" -}}{{ add .Values.shards (include "ecrec.spares" . | int) }}{{- end }}

{{/* What cannot work is refused here, before anything is made. */}}
{{- define "ecrec.check" -}}
{{- $group := div (.Values.shards | int) (.Values.groups | int) | int }}
{{- $members := add (include "ecrec.k" . | int) (include "ecrec.r" . | int) | int }}
{{- if mod (.Values.shards | int) (.Values.groups | int) }}
{{- fail (printf "shards %v, groups %v: groups are of equal size" .Values.shards .Values.groups) }}
{{- end }}
{{- if gt $group 16 }}
{{- fail (printf "shards %v, groups %v: a coding group has at most 16 shards" .Values.shards .Values.groups) }}
{{- end }}
{{- if gt $members $group }}
{{- fail (printf "code %s: a stripe needs %d shards, and a coding group has %d" .Values.code $members $group) }}
{{- end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,41}[a-z0-9])?$" .Release.Name) }}
{{- fail (printf "release %s: the name begins those of pods, and is at most 43 of a to z, 0 to 9 and -, a letter first" .Release.Name) }}
{{- end }}
{{- if ne (empty .Values.curve.serverSecret) (empty .Values.curve.workerSecret) }}
{{- fail "curve: give serverSecret and workerSecret, or neither" }}
{{- end }}
{{- end }}

{{- define "ecrec.labels" -}}
app.kubernetes.io/name: ecrec
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Where the scheduler is, for servers and workers. */}}
{{- define "ecrec.scheduler" -}}
{{- if .Values.zookeeper.hosts -}}
zk://{{ .Values.zookeeper.hosts }}{{ .Values.zookeeper.path | default (printf "/ecrec/%s/%s" .Release.Namespace .Release.Name) }}
{{- else -}}
tcp://{{ .Release.Name }}-scheduler-0-0.{{ .Release.Name }}:7070
{{- end }}
{{- end }}

{{/* Of a dict with "image" and "root". */}}
{{- define "ecrec.image" -}}
image: {{ printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) | quote }}
{{- with .root.Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}

{{/* What all pods have. Of a dict with "program" and "root". */}}
{{- define "ecrec.pod" -}}
restartPolicy: Never
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .program.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .program.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532}
{{- end }}

{{/* A lost node is noticed within a minute by Kubernetes, whatever is set here. Its pod is replaced when the node is removed. */}}
{{- define "ecrec.tolerations" -}}
tolerations:
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
{{- end }}

{{- define "ecrec.alive" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  failureThreshold: 3
{{- end }}

{{- define "ecrec.ready" -}}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 2
{{- end }}

{{/* More variables, from values. */}}
{{- define "ecrec.env" -}}
{{- range $name, $value := . }}
{{- /* Numbers of YAML are floats here, which are shown as 1e+06 from a million on. */}}
{{- $text := $value | toString }}
{{- if kindIs "float64" $value }}
{{- if eq (floor $value) $value }}{{ $text = $value | int64 | toString }}{{ end }}
{{- end }}
- {name: {{ $name }}, value: {{ $text | quote }}}
{{- end }}
{{- end }}

{{/* A pod's own address. */}}
{{- define "ecrec.podIp" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}

{{/* The volume with keys of servers, and that with keys of workers. */}}
{{- define "ecrec.serverKeys" -}}
- name: keys
  secret:
    secretName: {{ .Values.curve.serverSecret }}
    defaultMode: 0400
    items:
      - {key: own.key_secret, path: own.key_secret}
      - {key: servers.default.key, path: servers/default.key}
      - {key: allowed.servers.key, path: allowed/servers.key}
      - {key: allowed.workers.key, path: allowed/workers.key}
{{- end }}
{{- define "ecrec.workerKeys" -}}
- name: keys
  secret:
    secretName: {{ .Values.curve.workerSecret }}
    defaultMode: 0400
    items:
      - {key: own.key_secret, path: own.key_secret}
      - {key: servers.default.key, path: servers/default.key}
{{- end }}
