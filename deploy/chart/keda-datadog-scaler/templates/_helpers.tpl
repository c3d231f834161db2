{{/* A label has 63 characters at most, and `-test` is one too. */}}
{{- define "scaler.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 58 | trimSuffix "-" -}}
{{- end -}}

{{/* 63 characters are what a Service's name may have; what has more added to it may have 253. */}}
{{- define "scaler.fullname" -}}
{{- $name := include "scaler.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "scaler.selectorLabels" -}}
app.kubernetes.io/name: {{ include "scaler.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "scaler.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "scaler.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ include "scaler.name" . }}
app.kubernetes.io/managed-by: {{ .Values.customManagedBy | default .Release.Service }}
{{- with .Values.additionalLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of everything; called within `metadata`. */}}
{{- define "scaler.metadata" -}}
labels:
  {{- include "scaler.labels" . | nindent 2 }}
{{- with .Values.additionalAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "scaler.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "scaler.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "scaler.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "scaler.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end -}}

{{- define "scaler.image" -}}
{{- $global := (.Values.global).image | default dict -}}
{{- with $global.registry | default .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "scaler.kedaNamespace" -}}
{{- .Values.kedaNamespace | default .Release.Namespace -}}
{{- end -}}

{{/* As a JSON list; empty if it serves all. */}}
{{- define "scaler.namespaces" -}}
{{- $namespaces := list -}}
{{- range splitList "," (.Values.watchNamespace | default "") -}}
{{- with trim . }}{{ $namespaces = append $namespaces . }}{{ end -}}
{{- end -}}
{{- uniq $namespaces | toJson -}}
{{- end -}}

{{- define "scaler.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}
{{- include "scaler.fullname" . }}-tls
{{- else -}}
{{- .Values.tls.existingSecret | default "" -}}
{{- end -}}
{{- end -}}

{{/* A Secret with what a client of the scaler needs. */}}
{{- define "scaler.clientSecret" -}}
{{- if .Values.tls.clientExistingSecret -}}
{{- .Values.tls.clientExistingSecret -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- /* The server's has the CA in it, which is enough where no certificate is shown. */ -}}
{{- include "scaler.fullname" . }}-{{ .Values.tls.clientAuth | ternary "client" "tls" }}
{{- end -}}
{{- end -}}

{{/* That of the server stays where the scaler is. */}}
{{- define "scaler.clientSecretNamespace" -}}
{{- if or .Values.tls.clientExistingSecret .Values.tls.clientAuth -}}
{{- include "scaler.kedaNamespace" . -}}
{{- else -}}
{{- .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{/* Whether there is something for `helm test`: who connects needs KEDA's side, and the Secret with it. */}}
{{- define "scaler.isTested" -}}
{{- $isHere := eq (include "scaler.clientSecretNamespace" .) .Release.Namespace -}}
{{- if or (not (include "scaler.tlsSecret" .)) (and (include "scaler.clientSecret" .) $isHere) -}}true{{- end -}}
{{- end -}}

{{/* Flags of `serve` and their values, as a JSON object of strings. */}}
{{- define "scaler.flags" -}}
{{- $flags := dict -}}
{{- range $flag, $value := .Values.extraArgs -}}
{{- if kindIs "string" $value -}}
{{- $_ := set $flags $flag $value -}}
{{- else if not (eq (toJson $value) "false") -}}
{{- $_ := set $flags $flag (toJson $value) -}}
{{- end -}}
{{- end -}}
{{- /* Never `auto`, which is off where there is no token. */ -}}
{{- $_ := set $flags "kubernetes" (.Values.kubernetes.enabled | ternary "on" "off") -}}
{{- if .Values.kubernetes.enabled -}}
{{- $_ := set $flags "keda-namespace" (include "scaler.kedaNamespace" .) -}}
{{- end -}}
{{- with include "scaler.namespaces" . | fromJsonArray -}}
{{- $_ := set $flags "namespaces" (join "," .) -}}
{{- end -}}
{{- with .Values.ownAccount -}}
{{- if .existingSecret -}}
{{- $_ := set $flags "credentials-dir" "/etc/datadog" -}}
{{- end -}}
{{- with .namespaces -}}
{{- $_ := set $flags "own-account-namespaces" (join "," .) -}}
{{- end -}}
{{- end -}}
{{- with .Values.clusterAgent -}}
{{- if ne .source "auto" -}}
{{- $_ := set $flags "cluster-agent-source" .source -}}
{{- end -}}
{{- with .namespaces -}}
{{- $_ := set $flags "cluster-agent-namespaces" (join "," .) -}}
{{- end -}}
{{- with .url -}}
{{- $_ := set $flags "cluster-agent-url" . -}}
{{- end -}}
{{- if and .url .existingSecret -}}
{{- $_ := set $flags "cluster-agent-token-file" "/etc/cluster-agent/token" -}}
{{- end -}}
{{- if .caExistingSecret -}}
{{- $_ := set $flags "cluster-agent-ca" "/etc/cluster-agent-ca/ca.crt" -}}
{{- end -}}
{{- with .serverName -}}
{{- $_ := set $flags "cluster-agent-server-name" . -}}
{{- end -}}
{{- if .unsafeSsl -}}
{{- $_ := set $flags "cluster-agent-unsafe-ssl" "true" -}}
{{- end -}}
{{- end -}}
{{- if include "scaler.tlsSecret" . -}}
{{- $_ := set $flags "tls-cert" "/etc/scaler-tls/tls.crt" -}}
{{- $_ := set $flags "tls-key" "/etc/scaler-tls/tls.key" -}}
{{- if .Values.tls.clientAuth -}}
{{- $_ := set $flags "tls-client-ca" "/etc/scaler-tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- toJson $flags -}}
{{- end -}}

{{/* Whether the pod needs a token of its service account. */}}
{{- define "scaler.needsToken" -}}
{{- if or .Values.kubernetes.enabled (and .Values.clusterAgent.url (not .Values.clusterAgent.existingSecret)) -}}true{{- end -}}
{{- end -}}

{{/* Rights to read KEDA's objects and what they lead to, in one namespace or in all. */}}
{{- define "scaler.rules" -}}
# A request is honoured only if there is such a trigger. `list` and `watch`: which there are is
# known before KEDA asks. `get`: one that the watch has yet to tell of is looked for by its name.
- apiGroups: ["keda.sh"]
  resources: ["scaledobjects", "scaledjobs"]
  verbs: ["get", "list", "watch"]
# What an `authenticationRef` refers to. `list` and `watch`: a change counts at once. `get`: in place
# of a watch that has yet to tell.
- apiGroups: ["keda.sh"]
  resources: [{{ if .forAll }}"clustertriggerauthentications", {{ end }}"triggerauthentications"]
  verbs: ["get", "list", "watch"]
{{- with .rbac }}
{{- if .datadogMetrics }}
# What a Cluster Agent writes into DatadogMetrics, for triggers with `useClusterAgentProxy`. Without
# it, a Cluster Agent is asked. `get`: for `check` in the scaler's pod.
- apiGroups: ["datadoghq.com"]
  resources: ["datadogmetrics"]
  verbs: ["get", "list", "watch"]
{{- end }}
{{- if .configMaps }}
# `configMapTargetRef`, and `env` where a container has it from a ConfigMap.
- apiGroups: [""]
  resources: ["configmaps"]
  verbs: ["get"]
{{- end }}
{{- range .workloads }}
# `env`, which looks into the pod template of what is scaled. Nothing else needs it.
- apiGroups: [{{ .apiGroup | quote }}]
  resources: {{ .resources | toJson }}
  verbs: ["get"]
{{- end }}
{{- end }}
{{- end -}}

{{/* Never `list` or `watch`: either gives whole Secrets. */}}
{{- define "scaler.secretsRule" -}}
- apiGroups: [""]
  resources: ["secrets"]
  {{- if not .allSecrets }}
  resourceNames: {{ .secrets | toJson }}
  {{- end }}
  # Never `list` or `watch`: either gives whole Secrets.
  verbs: ["get"]
{{- end -}}

{{- define "scaler.validate" -}}
{{- $tls := .Values.tls -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- fail "`tls.existingSecret` and `tls.certManager.enabled` exclude each other" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.generateCA) (not $tls.certManager.issuer.name) -}}
{{- fail "`tls.certManager.issuer.name` is missing; or set `tls.certManager.generateCA`" -}}
{{- end -}}
{{- $elsewhere := ne (include "scaler.kedaNamespace" .) .Release.Namespace -}}
{{- $clusterIssuer := and (not $tls.certManager.generateCA) (eq $tls.certManager.issuer.kind "ClusterIssuer") -}}
{{- if and $tls.certManager.enabled $tls.clientAuth $elsewhere (not $clusterIssuer) -}}
{{- fail "KEDA's certificate has to be made in `kedaNamespace`, where an Issuer of this release's namespace is of no use; install the scaler there, or set `tls.certManager.generateCA=false` and name an issuer of `kind: ClusterIssuer`" -}}
{{- end -}}
{{- with .Values.clusterAgent -}}
{{- if and .unsafeSsl (not .url) -}}
{{- fail "`clusterAgent.unsafeSsl` is for the agent of `clusterAgent.url`, which is not set" -}}
{{- end -}}
{{- if and .unsafeSsl .serverName -}}
{{- fail "`clusterAgent.unsafeSsl` looks at no name, and `clusterAgent.serverName` says which; leave one of them out" -}}
{{- end -}}
{{- if and .serverName (not .caExistingSecret) -}}
{{- fail "`clusterAgent.serverName` needs the CA that vouches for it: set `clusterAgent.caExistingSecret`" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.clusterAgent.source "crd") (not .Values.kubernetes.enabled) -}}
{{- fail "`clusterAgent.source` is `crd`, which needs `kubernetes.enabled`" -}}
{{- end -}}
{{- if and .Values.ownAccount.namespaces (not .Values.ownAccount.existingSecret) -}}
{{- fail "`ownAccount.namespaces` is set, but there is no `ownAccount.existingSecret`" -}}
{{- end -}}
{{- end -}}
