"""The door: routes, keys, origins, framing, and the one endpoint that runs any generation."""
