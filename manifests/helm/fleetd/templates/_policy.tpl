{{/*
The policy, and what is read from it: durations and sizes as numbers, the pools of the kind kubernetes.
What fleetd itself makes of a policy is in fleetd/providers/kubernetes; tests/manifests holds the two against each other.
*/}}

{{/* The policy as the controller gets it: pools know where it is. */}}
{{- define "fleetd.policy" -}}
{{- $policy := deepCopy .Values.policy -}}
{{- $url := include "fleetd.url" . -}}
{{- range $name, $pool := $policy.pools -}}
{{- if hasKey $pool "kubernetes" -}}
{{- $_ := set $pool.kubernetes "controller" (default $url $pool.kubernetes.controller) -}}
{{- end -}}
{{- end -}}
{{- toYaml $policy -}}
{{- end -}}

{{/* A number as it is written, or as JSON writes it: 1000000 rather than 1e+06. */}}
{{- define "fleetd.text" -}}
{{- if kindIs "string" . }}{{ . | nospace }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{/* A duration in seconds. */}}
{{- define "fleetd.seconds" -}}
{{- $text := include "fleetd.text" . -}}
{{- $units := dict "d" 86400.0 "h" 3600.0 "m" 60.0 "s" 1.0 -}}
{{- if regexMatch "[dhms]$" $text -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+[dhms]" $text -1 -}}
{{- $sum = addf $sum (mulf (regexReplaceAll "[dhms]$" . "" | float64) (get $units (regexFind "[dhms]$" .))) -}}
{{- end -}}
{{- $sum | toJson -}}
{{- else -}}
{{- $text | float64 | toJson -}}
{{- end -}}
{{- end -}}

{{/* A size in bytes. */}}
{{- define "fleetd.bytes" -}}
{{- $text := include "fleetd.text" . -}}
{{- $units := dict "K" 1024.0 "M" 1048576.0 "G" 1073741824.0 "" 1.0 -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- mulf $number (get $units (regexFind "[KMG]" $text)) | int64 -}}
{{- end -}}

{{/* What a policy's name becomes in names of objects: itself where it is one, else its start and a digest. */}}
{{- define "fleetd.kept" -}}
{{- $safe := regexReplaceAll "[^a-z0-9]+" (lower .) "-" | trunc 40 | trimAll "-" | default "x" -}}
{{- if eq $safe . }}fleetd-{{ $safe }}{{ else }}fleetd-{{ $safe }}-{{ sha256sum . | trunc 6 }}{{ end -}}
{{- end -}}

{{/* A policy's name as the value of a label. */}}
{{- define "fleetd.label" -}}
{{- if regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" . -}}
{{- . -}}
{{- else -}}
{{- printf "%s-%s" (regexReplaceAll "[^a-z0-9]+" (lower .) "-" | trunc 40 | trimAll "-" | default "x") (sha256sum . | trunc 6) -}}
{{- end -}}
{{- end -}}

{{/* The kubernetes pools by name, as JSON: where they are, what their pods come from, which rights they ask for. */}}
{{- define "fleetd.pools" -}}
{{- $root := . -}}
{{- $kinds := dict
  "podtemplate" (dict "group" "" "api" "v1" "plural" "podtemplates" "name" "PodTemplate")
  "deployment" (dict "group" "apps" "api" "apps/v1" "plural" "deployments" "name" "Deployment")
  "statefulset" (dict "group" "apps" "api" "apps/v1" "plural" "statefulsets" "name" "StatefulSet")
  "replicaset" (dict "group" "apps" "api" "apps/v1" "plural" "replicasets" "name" "ReplicaSet") -}}
{{- $found := dict -}}
{{- range $name, $pool := .Values.policy.pools -}}
{{- if hasKey $pool "kubernetes" -}}
{{- $options := $pool.kubernetes -}}
{{- $key := ternary "target" "template" (eq $options.mode "scale") -}}
{{- $words := splitList "/" (required (printf "policy.pools.%s.kubernetes: mode %s needs %s" $name $options.mode $key) (get $options $key)) -}}
{{- $kind := dict "name" "" -}}
{{- if eq (len $words) 4 -}}
{{- $kind = dict "group" (index $words 0) "api" (printf "%s/%s" (index $words 0) (index $words 1)) "plural" (index $words 2) "name" "" -}}
{{- else if eq (len $words) 2 -}}
{{- $kind = get $kinds (index $words 0) -}}
{{- else -}}
{{- $kind = get $kinds "podtemplate" -}}
{{- end -}}
{{- $way := ternary "scale" (ternary "job" "pods" (eq (default "pod" $options.run) "job")) (eq $options.mode "scale") -}}
{{- $kept := include "fleetd.kept" $name -}}
{{- $_ := set $found $name (dict
  "way" $way
  "namespace" (default $root.Release.Namespace $options.namespace)
  "kind" $kind
  "source" (last $words)
  "kept" $kept
  "secret" (default $kept $options.join_secret)
  "own_secret" (not $options.join_secret)
  "container" (default "worker" $options.container)
  "controller" (default (include "fleetd.url" $root) $options.controller)) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The Lease, as JSON: {} where the policy has none. */}}
{{- define "fleetd.lease" -}}
{{- $leader := default dict .Values.policy.controller.leader -}}
{{- if hasKey $leader "kubernetes" -}}
{{- dict
  "namespace" (dig "kubernetes" "namespace" .Release.Namespace $leader)
  "name" (dig "kubernetes" "name" (printf "fleetd-%s" (lower .Values.policy.fleet | replace "_" "-")) $leader) | toJson -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* The rules of one who asks, as JSON; see files/rights.yaml. Takes {table, way, words, given}. */}}
{{- define "fleetd.rules" -}}
{{- $asked := . -}}
{{- $rules := list -}}
{{- range $right := .table -}}
{{- if and (has $asked.way $right.ways) (not (has (default "none" $right.unless) $asked.given)) -}}
{{- $rule := dict "apiGroups" (list $right.group) "resources" (list $right.resource) "verbs" $right.verbs -}}
{{- if $right.names -}}{{- $_ := set $rule "resourceNames" $right.names -}}{{- end -}}
{{- $text := toJson $rule -}}
{{- range $word, $value := $asked.words -}}
{{- $text = replace (printf "{%s}" $word) $value $text -}}
{{- end -}}
{{- $rules = append $rules (fromJson $text) -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "rules" $rules) -}}
{{- end -}}
