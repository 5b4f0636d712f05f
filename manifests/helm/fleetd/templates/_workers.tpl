{{/* The command line of a worker of mode scale; see Maker.arguments and WorkerLaunch.options, which say the same. */}}

{{/* The dispatchers of an app, as JSON. Takes {policy, app}. */}}
{{- define "fleetd.servers" -}}
{{- $servers := list -}}
{{- range $queue := .policy.queues -}}
{{- if eq $queue.app $.app -}}
{{- $source := get $.policy.sources $queue.source | default dict -}}
{{- $gearman := get $source "gearman" | default dict -}}
{{- if or (not (kindIs "map" $gearman)) (hasKey $gearman "embedded") -}}
{{- fail (printf "policy.sources.%s.gearman: app %s runs in pods, which do not reach a dispatcher embedded in the controller; give servers" $queue.source $.app) -}}
{{- else -}}
{{- $servers = concat $servers (default (list) $gearman.servers) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson ($servers | uniq) -}}
{{- end -}}

{{/* The longest job limit of an app's queues in seconds, where all have one; else nothing. Takes {policy, app}. */}}
{{- define "fleetd.limit" -}}
{{- $most := 0.0 -}}{{- $known := true -}}
{{- range $queue := .policy.queues -}}
{{- if eq $queue.app $.app -}}
{{- if hasKey $queue "job_limit" -}}
{{- $most = maxf $most (include "fleetd.seconds" $queue.job_limit | float64) -}}
{{- else -}}
{{- $known = false -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $known (gt $most 0.0) }}{{ toJson $most }}{{ end -}}
{{- end -}}

{{/* How long a pod is given: as long as a running job of any of its apps may take. Takes {policy, apps, given}. */}}
{{- define "fleetd.grace" -}}
{{- $most := float64 (default 0 .given) -}}
{{- range $app := .apps -}}
{{- $deadline := dig "drain" "deadline" "" (get $.policy.apps $app | default dict) -}}
{{- $known := include "fleetd.limit" (dict "policy" $.policy "app" $app) -}}
{{- if $deadline }}{{- $known = include "fleetd.seconds" $deadline -}}{{- end -}}
{{- $most = maxf $most (addf (default "3600" $known | float64) 30.0) -}}
{{- end -}}
{{- int64 $most -}}
{{- end -}}

{{/* The words of the command line, as JSON. Takes {policy, pool (of fleetd.pools), name}. */}}
{{- define "fleetd.words" -}}
{{- $policy := .policy -}}
{{- $of := get $policy.pools .name -}}
{{- $name := first $of.apps -}}
{{- $app := get $policy.apps $name | default dict -}}
{{- $words := list "--app-name" $name "--fleet" $policy.fleet "--pool" .name "--controller" .pool.controller -}}
{{- $words = concat $words (list "--node" (printf "%s/$(FLEETD_POD).$(FLEETD_POD_UID)" .name)) -}}
{{- $more := list -}}
{{- range include "fleetd.servers" (dict "policy" $policy "app" $name) | fromJsonArray -}}
{{- $more = concat $more (list "--server" .) -}}
{{- end -}}
{{- range dig "releases" "keys" (list) $policy -}}
{{- $more = concat $more (list "--key" .) -}}
{{- end -}}
{{- $processes := $of.slots -}}{{- $per := 1 -}}
{{- if kindIs "map" $of.slots -}}
{{- $processes = $of.slots.processes -}}{{- $per = default 1 $of.slots.per_process -}}
{{- end -}}
{{- $more = concat $more (list "--slots" (include "fleetd.text" $processes) "--per-process" (include "fleetd.text" $per)) -}}
{{- $counts := list
  (list "--attempts" (default 3 $app.attempts))
  (list "--overlap" (dig "reload" "overlap" 0 $app))
  (list "--crashes" (dig "reload" "crashes" 2 $app))
  (list "--recycle-jobs" (dig "recycle" "jobs" 0 $app)) -}}
{{- range $counts -}}
{{- if last . }}{{- $more = concat $more (list (first .) (include "fleetd.text" (last .))) -}}{{- end -}}
{{- end -}}
{{- $limit := include "fleetd.limit" (dict "policy" $policy "app" $name) -}}
{{- $times := list
  (list "--job-limit" $limit)
  (list "--drain-deadline" (dig "drain" "deadline" "" $app))
  (list "--health" (dig "reload" "health" "3s" $app))
  (list "--probation" (dig "reload" "probation" "1m" $app))
  (list "--recycle-after" (dig "recycle" "age" "" $app)) -}}
{{- range $times -}}
{{- if last . -}}
{{- $seconds := include "fleetd.seconds" (last .) -}}
{{- if ne $seconds "0" }}{{- $more = concat $more (list (first .) $seconds) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range list (list "--slot-memory" (default "" $app.memory)) (list "--recycle-memory" (dig "recycle" "memory" "" $app)) -}}
{{- if last . }}{{- $more = concat $more (list (first .) (include "fleetd.bytes" (last .))) -}}{{- end -}}
{{- end -}}
{{- range $more -}}
{{- $words = append $words (replace "$(" "$$(" .) -}}
{{- end -}}
{{- toJson $words -}}
{{- end -}}

{{/* The pod of a worker, as YAML. Takes {root, name, pool, worker}. */}}
{{- define "fleetd.worker" -}}
{{- $root := .root -}}{{- $pool := .pool -}}{{- $worker := .worker -}}
{{- $policy := $root.Values.policy -}}
{{- $apps := (get $policy.pools .name).apps -}}
{{- $restricted := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
metadata:
  labels:
    app.kubernetes.io/name: {{ $pool.source }}
    app.kubernetes.io/component: worker
    app.kubernetes.io/part-of: fleetd
    {{- with $worker.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with $worker.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: {{ if $worker.serviceAccountName }}true{{ else }}false{{ end }}
  {{- with $worker.serviceAccountName }}
  serviceAccountName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ include "fleetd.grace" (dict "policy" $policy "apps" $apps "given" $worker.terminationGracePeriodSeconds) }}
  securityContext: {{- toYaml (mergeOverwrite $restricted (deepCopy $root.Values.podSecurityContext) (default dict $worker.podSecurityContext)) | nindent 4 }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
  {{- with get $worker $key }}
  {{ $key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with default $root.Values.imagePullSecrets $worker.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ $pool.container }}
      {{- $image := merge (dict) (default dict $worker.image) $root.Values.workerImage }}
      image: {{ include "fleetd.image" (merge (dict "version" $root.Chart.AppVersion) $image) }}
      imagePullPolicy: {{ $image.pullPolicy }}
      command: {{ default (list "python" "-m" "fleetd.worker") $worker.command | toJson }}
      {{- $args := default (list) $worker.args }}
      {{- if eq $pool.way "scale" }}
      {{- $args = concat $args (include "fleetd.words" (dict "policy" $policy "pool" $pool "name" .name) | fromJsonArray) }}
      {{- end }}
      {{- with $args }}
      args: {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        - {name: HOME, value: /var/lib/fleetd}
        - {name: XDG_STATE_HOME, value: /var/lib/fleetd/state}
        - {name: XDG_CACHE_HOME, value: /var/lib/fleetd/cache}
        {{- with $worker.env }}{{ toYaml . | nindent 8 }}{{ end }}
        {{- if eq $pool.way "scale" }}
        - {name: FLEETD_POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: FLEETD_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        - {name: FLEETD_JOIN_TOKEN, valueFrom: {secretKeyRef: {name: {{ $pool.secret }}, key: token}}}
        {{- end }}
      {{- with $worker.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      resources: {{- toYaml $worker.resources | nindent 8 }}
      securityContext: {{- toYaml (mergeOverwrite (dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL"))) (default dict $worker.securityContext)) | nindent 8 }}
      volumeMounts:
        - {name: home, mountPath: /var/lib/fleetd}
        - {name: tmp, mountPath: /tmp}
        {{- with $worker.volumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - {name: home, emptyDir: {}}
    - {name: tmp, emptyDir: {}}
    {{- with $worker.volumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end -}}
