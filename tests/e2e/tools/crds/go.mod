module keda-datadog-scaler.e2e/crds

go 1.26.0

// Nothing is built of these: the CRDs are in them that the chart's objects are of.
require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
