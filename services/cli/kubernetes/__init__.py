"""What the pods of an installation in Kubernetes ask of the API server; no running part needs it."""
