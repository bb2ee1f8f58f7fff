{{/* A pod that serves. Call with (dict "root" $ "part" "server" | "files"). */}}
{{- define "vl2.pod" -}}
{{- $root := .root -}}
{{- $v := $root.Values -}}
metadata:
  labels:
    {{- include "vl2.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $v.server.preStopSeconds $v.server.drainTimeoutSeconds 15 }}
  securityContext:
    {{- include "vl2.podSecurityContext" $root | nindent 4 }}
  {{- with $v.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $v.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if ne $v.antiAffinity "off" }}
  affinity:
    podAntiAffinity:
      {{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "vl2.selector" $root | fromYaml)) }}
      {{- if eq $v.antiAffinity "hard" }}
      requiredDuringSchedulingIgnoredDuringExecution:
        - {{- toYaml $term | nindent 10 }}
      {{- else }}
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            {{- toYaml $term | nindent 12 }}
      {{- end }}
  {{- end }}
  {{- if include "vl2.isDownloaded" $root }}
  initContainers:
    - name: wait-for-model
      image: {{ include "vl2.image" $root | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: [/bin/sh, -c, 'until vl2 pull "$VL2_MODEL" --offline; do sleep 10; done']
      env:
        - {name: VL2_MODEL, value: {{ $v.model | quote }}}
        {{- include "vl2.hubEnv" $root | nindent 8 }}
      resources:
        requests: {cpu: 100m, memory: 512Mi}
        limits: {memory: 2Gi}
      securityContext:
        {{- include "vl2.securityContext" $root | nindent 8 }}
      volumeMounts:
        - {name: models, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
  {{- end }}
  containers:
    - name: vl2
      image: {{ include "vl2.image" $root | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [serve]
      env:
        - {name: VL2_MODEL, value: {{ $v.model | quote }}}
        - {name: VL2_HOST, value: 0.0.0.0}
        - {name: VL2_PORT, value: "8000"}
        - {name: VL2_ADMIN_HOST, value: 0.0.0.0}
        - {name: VL2_ADMIN_PORT, value: "9000"}
        - {name: VL2_REPLICAS, value: {{ max 1 (int $v.gpus) | quote }}}
        - {name: VL2_DEVICE, value: {{ ternary "cuda" "cpu" (gt (int $v.gpus) 0) }}}
        - {name: VL2_DTYPE, value: {{ $v.server.dtype }}}
        - {name: VL2_MAX_SEQUENCES, value: {{ $v.server.maxSequences | quote }}}
        {{- if $v.server.maxContextTokens }}
        - {name: VL2_MAX_CONTEXT_TOKENS, value: {{ $v.server.maxContextTokens | quote }}}
        {{- end }}
        - {name: VL2_DRAIN_TIMEOUT_S, value: {{ $v.server.drainTimeoutSeconds | quote }}}
        - {name: VL2_LOG_LEVEL, value: {{ $v.server.logLevel }}}
        {{- with $v.servedModelName }}
        - {name: VL2_SERVED_MODEL_NAME, value: {{ . | quote }}}
        {{- end }}
        {{- if eq .part "files" }}
        - {name: VL2_NODE_NAME, value: files}
        - {name: VL2_STATE_DIR, value: /state}
        {{- else }}
        - {name: VL2_STATE_DIR, value: ""}
        {{- end }}
        {{- if include "vl2.isDownloaded" $root }}
        - {name: VL2_OFFLINE, value: "1"}
        - {name: HOME, value: /tmp}  # of caches: /data is read-only
        {{- end }}
        - {name: PYTORCH_CUDA_ALLOC_CONF, value: {{ $v.server.allocator | quote }}}
        - {name: TRITON_CACHE_DIR, value: /tmp/triton}
        {{- include "vl2.hubEnv" $root | nindent 8 }}
        {{- if $v.auth.allowWithoutKeys }}
        - {name: VL2_ALLOW_WITHOUT_KEYS, value: "1"}
        - {name: VL2_ALLOWED_HOST, value: "*"}  # the names of services and ingresses
        {{- else if eq $v.auth.kind "jsonl" }}
        - {name: VL2_KEYS_FILE, value: /keys/keys.jsonl}
        {{- else }}
        - name: VL2_API_KEY
          valueFrom: {secretKeyRef: {name: {{ include "vl2.authSecret" $root | quote }}, key: api-key}}
        {{- end }}
        {{- range $name, $value := $v.server.env }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
      ports:
        - {name: http, containerPort: 8000}
        - {name: admin, containerPort: 9000}
      # The second port asks for no key.
      startupProbe:
        httpGet: {path: /health/ready, port: admin}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div $v.server.startupSeconds 5 }}
      livenessProbe:
        httpGet: {path: /health/live, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /health/ready, port: admin}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 1
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ $v.server.preStopSeconds | quote }}]}
      {{- $resources := deepCopy $v.resources }}
      {{- if gt (int $v.gpus) 0 }}
      {{- $_ := set $resources "limits" (merge (dict $v.gpuResource (int $v.gpus)) ($resources.limits | default dict)) }}
      {{- end }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "vl2.securityContext" $root | nindent 8 }}
      volumeMounts:
        - {name: models, mountPath: /data{{ if include "vl2.isDownloaded" $root }}, readOnly: true{{ end }}}
        - {name: tmp, mountPath: /tmp}
        {{- if eq .part "files" }}
        - {name: state, mountPath: /state}
        {{- end }}
        {{- if and (eq $v.auth.kind "jsonl") (not $v.auth.allowWithoutKeys) }}
        - {name: keys, mountPath: /keys, readOnly: true}
        {{- end }}
  volumes:
    - name: models
      {{- if $v.cache.enabled }}
      persistentVolumeClaim: {claimName: {{ include "vl2.modelClaim" $root | quote }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: 4Gi}
    {{- if and (eq $v.auth.kind "jsonl") (not $v.auth.allowWithoutKeys) }}
    - name: keys
      secret: {secretName: {{ include "vl2.authSecret" $root | quote }}}
    {{- end }}
{{- end -}}
