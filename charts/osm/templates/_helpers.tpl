{{/*
The values in force, as YAML: OpenServiceMesh.*, with every value given under osm.* laid over it.
Use: {{- $mesh := include "osm.values" . | fromYaml -}}
*/}}
{{- define "osm.values" -}}
{{- include "osm.overlay" (list .Values.OpenServiceMesh (.Values.osm | default dict)) -}}
{{- end -}}

{{/* Lays the second map over the first, deeply. Sprig's mergeOverwrite would lose false, 0 and "". */}}
{{- define "osm.overlay" -}}
{{- $under := deepCopy (index . 0) -}}
{{- range $key, $value := index . 1 -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $under $key)) -}}
{{- $value = include "osm.overlay" (list (get $under $key) $value) | fromYaml -}}
{{- end -}}
{{- $_ := set $under $key $value -}}
{{- end -}}
{{- toYaml $under -}}
{{- end -}}

{{/* Namespace of the control plane. */}}
{{- define "osm.namespace" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
{{- $mesh.osmNamespace | default .Release.Namespace -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "osm.labels" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
app.kubernetes.io/name: openservicemesh.io
app.kubernetes.io/instance: {{ $mesh.meshName | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* An image. Arguments: root, mesh, key of image.name and image.digest. */}}
{{- define "osm.image" -}}
{{- $root := index . 0 -}}{{- $image := (index . 1).image -}}{{- $key := index . 2 -}}
{{- $name := printf "%s/%s" $image.registry (get $image.name $key) -}}
{{- if $image.tag -}}{{ $name }}:{{ $image.tag }}
{{- else if get $image.digest $key -}}{{ $name }}@{{ get $image.digest $key }}
{{- else -}}{{ $name }}:{{ $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/*
What a component's scaling comes to, as YAML. Arguments: mesh, key of the component. Fails on what the schema cannot see.
*/}}
{{- define "osm.scaling" -}}
{{- $mesh := index . 0 -}}{{- $key := index . 1 -}}
{{- $component := get $mesh $key -}}
{{- $auto := $component.autoScale -}}
{{- $at := printf "OpenServiceMesh.%s.autoScale" $key -}}
{{- $min := $auto.minReplicas | int -}}
{{- $max := $auto.maxReplicas | int -}}
{{- $replicas := $component.replicaCount | int -}}
{{- $enabled := $auto.enable -}}
{{- if $mesh.ha -}}
{{- $enabled = true -}}{{- $min = max 3 $min -}}{{- $replicas = max 3 $replicas -}}
{{- end -}}
{{- if gt ($auto.minReplicas | int) ($auto.maxReplicas | int) -}}
{{- fail (printf "%s.minReplicas is %d, more than maxReplicas, which is %d: lower the one or raise the other" $at $min $max) -}}
{{- end -}}
{{- if gt $min $max -}}
{{- fail (printf "%s.maxReplicas is %d, but OpenServiceMesh.ha needs at least 3 replicas: raise it to 3 or more" $at $max) -}}
{{- end -}}
{{- $cpu := $auto.cpu.targetAverageUtilization -}}
{{- if kindIs "invalid" $auto.targetAverageUtilization | not -}}{{- $cpu = $auto.targetAverageUtilization -}}{{- end -}}
{{- $memory := $auto.memory.targetAverageUtilization -}}
{{- if $enabled -}}
{{- if kindIs "invalid" $cpu -}}{{- $cpu = 80 -}}{{- end -}}
{{- if lt ($cpu | int) 1 -}}
{{- fail (printf "%s.cpu.targetAverageUtilization is 0, which no pod can stay under: give 1 to 100" $at) -}}
{{- end -}}
{{- if kindIs "invalid" $memory | not -}}{{- if lt ($memory | int) 1 -}}
{{- fail (printf "%s.memory.targetAverageUtilization is 0, which no pod can stay under: give 1 to 100, or leave it out" $at) -}}
{{- end -}}{{- end -}}
{{- end -}}
enabled: {{ $enabled }}
replicas: {{ $replicas }}
min: {{ $min }}
max: {{ $max }}
cpu: {{ $cpu | int }}
memory: {{ if kindIs "invalid" $memory }}0{{ else }}{{ $memory | int }}{{ end }}
budget: {{ or $mesh.ha $component.enablePodDisruptionBudget }}
required: {{ eq (default (ternary "required" "preferred" $mesh.ha) $mesh.hostSpread) "required" }}
{{- end -}}

{{/* Security context of a pod. OpenShift chooses the users itself. */}}
{{- define "osm.podSecurityContext" -}}
runAsNonRoot: true
{{- if not (.Capabilities.APIVersions.Has "security.openshift.io/v1") }}
runAsUser: 1000
runAsGroup: 3000
fsGroup: 2000
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security context of a container. */}}
{{- define "osm.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/*
Spreading over zones and hosts. Each revision is spread by itself (pod-template-hash), so that a rolling update always
finds a host. Arguments: app label, whether hosts are required to differ.
*/}}
{{- define "osm.spread" -}}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      app: {{ index . 0 }}
  matchLabelKeys: [pod-template-hash]
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  {{- if index . 1 }}
  whenUnsatisfiable: DoNotSchedule
  minDomains: 2
  {{- else }}
  whenUnsatisfiable: ScheduleAnyway
  {{- end }}
  nodeTaintsPolicy: Honor
  labelSelector:
    matchLabels:
      app: {{ index . 0 }}
  matchLabelKeys: [pod-template-hash]
{{- end -}}

{{/* Affinity: the value, and a preference for hosts and zones without a replica. Arguments: component, app label. */}}
{{- define "osm.affinity" -}}
{{- $affinity := (index . 0).affinity | default dict -}}
{{- if not (hasKey $affinity "podAntiAffinity") -}}
{{- $term := dict "labelSelector" (dict "matchLabels" (dict "app" (index . 1))) -}}
{{- $host := dict "weight" 100 "podAffinityTerm" (merge (dict "topologyKey" "kubernetes.io/hostname") $term) -}}
{{- $zone := dict "weight" 50 "podAffinityTerm" (merge (dict "topologyKey" "topology.kubernetes.io/zone") $term) -}}
{{- $affinity = merge (dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list $host $zone))) $affinity -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{/* Flags that both components take. Arguments: root, mesh. */}}
{{- define "osm.commonArgs" -}}
{{- $root := index . 0 -}}{{- $mesh := index . 1 -}}
- --verbosity={{ $mesh.controllerLogLevel }}
- --mesh-name={{ $mesh.meshName }}
- --osm-namespace={{ include "osm.namespace" $root }}
- --osm-config-name=osm-mesh-config
- --osm-version={{ $root.Chart.AppVersion }}
- --ca-bundle-secret-name={{ $mesh.caBundleSecretName }}
- --trust-domain={{ $mesh.trustDomain }}
- --certificate-manager={{ $mesh.certificateProvider.kind }}
{{- if eq $mesh.certificateProvider.kind "vault" }}
- --vault-host={{ required "OpenServiceMesh.vault.host is needed with certificateProvider.kind=vault" $mesh.vault.host }}
- --vault-port={{ $mesh.vault.port }}
- --vault-protocol={{ $mesh.vault.protocol }}
- --vault-role={{ $mesh.vault.role }}
{{- if $mesh.vault.secret.name }}
- --vault-token-secret-name={{ $mesh.vault.secret.name }}
- --vault-token-secret-key={{ required "OpenServiceMesh.vault.secret.key is needed with vault.secret.name" $mesh.vault.secret.key }}
{{- else }}
- --vault-token-secret-name=osm-vault-token
- --vault-token-secret-key=token
{{- end }}
{{- if $mesh.vault.caSecret.name }}
- --vault-ca-file=/etc/osm/vault/{{ $mesh.vault.caSecret.key }}
{{- end }}
{{- else if eq $mesh.certificateProvider.kind "cert-manager" }}
- --cert-manager-issuer-name={{ $mesh.certmanager.issuerName }}
- --cert-manager-issuer-kind={{ $mesh.certmanager.issuerKind }}
- --cert-manager-issuer-group={{ $mesh.certmanager.issuerGroup }}
{{- end }}
{{- end -}}

{{/* What a component's container sees of the certificate provider's files; empty when there are none. */}}
{{- define "osm.providerMounts" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
{{- if and (eq $mesh.certificateProvider.kind "vault") $mesh.vault.caSecret.name -}}
- {name: vault-ca, mountPath: /etc/osm/vault, readOnly: true}
{{- end }}
{{- end -}}
{{- define "osm.providerVolumes" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
{{- if and (eq $mesh.certificateProvider.kind "vault") $mesh.vault.caSecret.name -}}
- name: vault-ca
  secret:
    secretName: {{ $mesh.vault.caSecret.name }}
    items: [{key: {{ $mesh.vault.caSecret.key }}, path: {{ $mesh.vault.caSecret.key }}}]
{{- end }}
{{- end -}}

{{/*
Probes: alive as soon as the process's loops turn, ready when it is usable. A replica that hangs is to be killed 18 s
later, at the third probe: until then its sidecars stay with it, since its kernel answers them. It gets no time to leave
in order, which it could not do.
*/}}
{{- define "osm.probes" -}}
startupProbe:
  httpGet: {path: /health/alive, port: healthz}
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /health/ready, port: healthz}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /health/alive, port: healthz}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 3
  terminationGracePeriodSeconds: 1
{{- end -}}

{{/* The webhooks' namespaceSelector: namespaces of this mesh, never the control plane's own or Kubernetes'. */}}
{{- define "osm.namespaceSelector" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
matchLabels:
  openservicemesh.io/monitored-by: {{ $mesh.meshName | quote }}
matchExpressions:
  - key: openservicemesh.io/ignore
    operator: DoesNotExist
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: [kube-system, kube-public, kube-node-lease, {{ include "osm.namespace" . }}]
  - key: control-plane
    operator: DoesNotExist
{{- end -}}

{{/* Names of the webhook configurations. */}}
{{- define "osm.mutatingWebhookName" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
{{- printf "%s-%s" $mesh.webhookConfigNamePrefix $mesh.meshName -}}
{{- end -}}
{{- define "osm.validatingWebhookName" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
{{- $mesh.validatorWebhook.webhookConfigurationName | default (printf "osm-validator-mesh-%s" $mesh.meshName) -}}
{{- end -}}

{{/* What a component may do, in its own namespace, to get certificates from the provider. */}}
{{- define "osm.issuerRules" -}}
{{- $mesh := include "osm.values" . | fromYaml -}}
# The root, or the root certificate of a provider outside, which is not taken for another one's; and the two Secrets that
# rotations keep new roots in, in turn.
- apiGroups: [""]
  resources: [secrets]
  resourceNames:
    - {{ $mesh.caBundleSecretName }}
    - {{ $mesh.caBundleSecretName }}-a
    - {{ $mesh.caBundleSecretName }}-b
    {{- if eq $mesh.certificateProvider.kind "vault" }}
    - {{ $mesh.vault.secret.name | default "osm-vault-token" }}
    {{- end }}
  verbs: [get]
# It is created by whoever comes first. A create cannot be narrowed to a name.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
{{- if eq $mesh.certificateProvider.kind "cert-manager" }}
- apiGroups: [cert-manager.io]
  resources: [certificaterequests]
  verbs: [get, create, delete]
{{- end }}
# Which roots there are, and what this replica reports of them.
- apiGroups: [config.openservicemesh.io]
  resources: [meshrootcertificates]
  verbs: [get, list, watch]
- apiGroups: [config.openservicemesh.io]
  resources: [meshrootcertificates/status]
  verbs: [patch]
{{- end -}}
