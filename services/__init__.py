"""The services of the mesh and the kit they share: runtime, settings, telemetry."""
