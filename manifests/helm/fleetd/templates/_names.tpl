{{/* Names, labels, and who the controller is. */}}

{{- define "fleetd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "fleetd.fullname" -}}
{{- $name := include "fleetd.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "fleetd.selector" -}}
app.kubernetes.io/name: {{ include "fleetd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "fleetd.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fleetd
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fleetd.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "fleetd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: is needed with serviceAccount.create: false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Where its Role is: the same name in the release's own namespace; elsewhere that of another release may be there. */}}
{{- define "fleetd.role" -}}
{{- $name := include "fleetd.fullname" .root -}}
{{- if eq .namespace .root.Release.Namespace }}{{ $name }}{{ else }}{{ printf "%s-%s" .root.Release.Namespace $name }}{{ end -}}
{{- end -}}

{{- define "fleetd.secret" -}}
{{- if and .Values.secret.existing .Values.secret.data -}}
{{- fail "secret: give existing or data, not both" -}}
{{- end -}}
{{- if not (or .Values.secret.existing .Values.secret.data) -}}
{{- fail "secret: give existing, the name of a Secret with FLEETD_JOIN and FLEETD_TOKEN; or data with both" -}}
{{- end -}}
{{- default (include "fleetd.fullname" .) .Values.secret.existing -}}
{{- end -}}

{{- define "fleetd.image" -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default .version .tag) -}}
{{- end -}}
{{- end -}}

{{/* The port that the controller listens on. */}}
{{- define "fleetd.port" -}}
{{- $listen := .Values.policy.controller.listen -}}
{{- $port := regexFind "[0-9]+$" $listen -}}
{{- if or (not $port) (eq $port "0") -}}
{{- fail (printf "policy.controller.listen: %s has no port; a Service needs one, as in 0.0.0.0:8080" $listen) -}}
{{- end -}}
{{- if regexMatch "^(localhost|127\\.|\\[::1\\])" $listen -}}
{{- fail (printf "policy.controller.listen: nobody reaches %s from outside of the pod; write 0.0.0.0:%s" $listen $port) -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{- define "fleetd.url" -}}
{{- printf "http://%s.%s:%s" (include "fleetd.fullname" .) .Release.Namespace (include "fleetd.port" .) -}}
{{- end -}}
