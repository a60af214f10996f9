"""Programs that open a model and time it on request, each a process of its own."""
