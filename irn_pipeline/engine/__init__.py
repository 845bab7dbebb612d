"""The engine that runs stages; it knows nothing about vision."""
