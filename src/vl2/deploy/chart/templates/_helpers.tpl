{{- define "vl2.name" -}}
{{- printf "%s-vl2" .Release.Name | replace "vl2-vl2" "vl2" | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Of a selector: these never change, as selectors cannot. */}}
{{- define "vl2.selector" -}}
app.kubernetes.io/name: vl2
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "vl2.labels" -}}
{{ include "vl2.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "vl2.image" -}}
{{- $image := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- if .Values.global.imageRegistry -}}
{{- printf "%s/%s" (.Values.global.imageRegistry | trimSuffix "/") $image -}}
{{- else -}}
{{- $image -}}
{{- end -}}
{{- end -}}

{{- define "vl2.authSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-keys" (include "vl2.name" .)) -}}
{{- end -}}

{{- define "vl2.modelClaim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-models" (include "vl2.name" .)) -}}
{{- end -}}

{{- define "vl2.isDownloaded" -}}
{{- if and .Values.cache.enabled .Values.cache.download (ne .Values.model "nano") (not (hasPrefix "/" .Values.model)) -}}yes{{- end -}}
{{- end -}}

{{/* The hub's variables, of servers and of the download. */}}
{{- define "vl2.hubEnv" -}}
- {name: VL2_HUB, value: {{ .Values.hub.kind | quote }}}
{{- with .Values.hub.endpoint }}
- {name: VL2_HUB_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.hub.revision }}
- {name: VL2_REVISION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.hub.tokenSecret }}
- name: VL2_HUB_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: token}}
{{- end }}
{{- if eq .Values.hub.kind "modelscope" }}
- {name: VL2_CACHE_FOLDER, value: /data/modelscope}
{{- end }}
{{- end -}}

{{- define "vl2.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "vl2.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}
